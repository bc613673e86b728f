"""Where a run happens: device, dtype, seed; and what its processes, where a launcher starts several, say to each other.

The saying is accelerate's; every function here serves a single process too.
"""

import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from utils import ranks
from utils.errors import EnvironmentFault, Fault

# How long one waits for another that does not come: bases load at different speed, and answers have different lengths.
PATIENCE = timedelta(minutes=30)
_CGROUPS = (  # of a container: the folder, its limit, what is used of it
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def join(gpu_id: str = "") -> torch.device:
    """Meet the launcher's other processes, if there are any; the device of this one (see device).

    Raises EnvironmentFault, besides, where the environment tells of others that cannot be met.
    """
    on = device(gpu_id)
    if ranks.world_size() > 1:
        met = PartialState(cpu=on.type == "cpu", timeout=PATIENCE).num_processes
        if met != ranks.world_size():  # accelerate wants LOCAL_RANK too, and else works alone
            raise EnvironmentFault(f"WORLD_SIZE is {ranks.world_size()}, but nothing joins them: start it by torchrun")
        ranks.meet()
    return on


def of_first(work: Callable, *arguments: object) -> Any:
    """What `work` returns on the first process, on all of them; what it does is done once.

    What it returns must be picklable. A Fault that it raises there ends them all.
    """
    outcome: list = [None]
    if ranks.is_first():
        try:
            outcome = [work(*arguments)]
        except Fault as fault:
            outcome = [fault]
    if ranks.world_size() > 1:
        broadcast_object_list(outcome)
    if isinstance(outcome[0], Fault):
        outcome[0].is_told = ranks.local_rank() > 0
        raise outcome[0]
    return outcome[0]


def gathered(value: object) -> list:
    """The values of all processes, in the order of their ranks."""
    return gather_object([value]) if ranks.world_size() > 1 else [value]


def device(gpu_id: str = "") -> torch.device:
    """The GPU of this local rank (or the one named by gpu_id), else the CPU.

    Raises EnvironmentFault where a launcher has started more processes than there are GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if ranks.local_size() > torch.cuda.device_count():
        raise EnvironmentFault(f"{ranks.local_size()} processes on this machine, but {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", int(gpu_id or ranks.local_rank()))


def free_bytes(on: torch.device) -> int:
    """Memory that is free on a device; for the CPU the machine's, or the container's where that is less."""
    if on.type == "cuda":
        return torch.cuda.mem_get_info(on)[0]
    free = psutil.virtual_memory().available
    for folder, limit, used in _CGROUPS:
        if Path(folder, limit).exists() and (text := Path(folder, limit).read_text().strip()).isdigit():
            free = min(free, int(text) - int(Path(folder, used).read_text()) + _file_cache(Path(folder)))
    return free


def _file_cache(folder: Path) -> int:
    """Pages of files count as used, and are given back when memory is asked for."""
    lines = map(str.split, (folder / "memory.stat").read_text().splitlines())
    return sum(int(size) for name, size in lines if name in ("active_file", "inactive_file"))


def compute_dtype(asked: str, stored: torch.dtype, on: torch.device) -> torch.dtype:
    """The dtype an unquantised base is held in.

    asked: "auto" or a name such as "bfloat16"; stored: the checkpoint's dtype. "auto" keeps `stored`, but float16
    becomes bfloat16 on a CPU, whose float16 arithmetic is slow and incomplete.
    """
    if asked != "auto":
        return getattr(torch, asked)
    return torch.bfloat16 if stored == torch.float16 and on.type == "cpu" else stored


def seed_everything(seed: int) -> None:
    """Seed Python's and torch's generators; order and dropout of a run follow from it."""
    random.seed(seed)
    torch.manual_seed(seed)
