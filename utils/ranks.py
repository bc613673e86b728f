"""Which of a launcher's processes this is (torchrun, accelerate launch). The only reader of the launcher's variables.

Standard library only: the command line asks it before anything heavy is imported.
"""

import os
from functools import cache

_LIBRARIES = ("gloo", "NCCL")
_GONE = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
# What accelerate's configuration may ask for and is not taken from there: variable, its name in the file.
_UNTAKEN = {
    "ACCELERATE_MIXED_PRECISION": "mixed_precision",
    "ACCELERATE_DYNAMO_BACKEND": "dynamo_backend",
    "ACCELERATE_USE_DEEPSPEED": "deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": "megatron_lm",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
}
_met = False


def rank() -> int:
    """Index of this process among all of the launcher's; 0 when there is one."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Index of this process among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Number of the launcher's processes; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_size() -> int:
    """Number of them on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@cache
def shards_base() -> bool:
    """Whether the launcher's configuration says FSDP (see utils.sharding), which accelerate is not to hear of."""
    return os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"


def untaken() -> list[str]:
    """What the launcher's configuration asks for that would change the arithmetic past our flags, as "name: value"."""
    asked = {name: os.environ.get(variable, "no") for variable, name in _UNTAKEN.items()}
    return [f"{name}: {value}" for name, value in asked.items() if value.lower() not in ("", "no", "false")]


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def meet() -> None:
    """Note that the processes have met."""
    global _met
    _met = True


def have_met() -> bool:
    """Whether each may fail for a reason of its own; before, all of a machine end for the same reason."""
    return _met


def loss(error: BaseException) -> str | None:
    """What an error says of the connection to the run's other processes, None for any other error: only its sentence
    tells. Where it does not say that one is gone, its first line stands behind."""
    text = str(error)
    if world_size() == 1 or not any(word in text for word in (*_GONE, *_LIBRARIES)):
        return None
    if any(word in text for word in _GONE):
        return "another process of this run is gone"
    return f"the processes of this run do not reach each other: {text.strip().splitlines()[0]}"
