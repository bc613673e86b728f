"""Where a run happens: device, dtype, seed, rank. The only reader of the launcher's RANK variables."""

import os
import random
from pathlib import Path

import psutil
import torch

_CGROUPS = (  # of a container: the folder, its limit, what is used of it
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def rank() -> int:
    """Index of this process among those of the launcher; 0 when there is one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of the launcher; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device(gpu_id: str = "") -> torch.device:
    """The GPU of this local rank (or the one named by gpu_id), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(gpu_id or os.environ.get("LOCAL_RANK", "0")))


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
