"""Model and adapter names to folders on this disk: a path stays what it is, a Hub name is brought into the cache."""

import os
import re
from pathlib import Path

from utils.errors import ArgumentFault, EnvironmentFault, ModelFault, first_line

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WANTED = ["*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja"]


def is_hub_name(name: str) -> bool:
    """Whether `name` reads as owner/name and not as a path: nothing on this disk, nor in a folder that is here."""
    if not _HUB_NAME.fullmatch(name) or name.endswith((".json", ".jsonl")):
        return False
    return not Path(name).exists() and not Path(name).parent.is_dir()


def adapter_names(text: str) -> list[str]:
    """`A,B` of --lora_weights or --lora_model as its parts, in order; a folder whose name has a comma in it is one."""
    names = [text] if os.path.exists(text) else text.split(",")
    return [name.strip() for name in names if name.strip()]


def local_folder(name: str, flag: str) -> Path:
    """The folder that holds `name`'s files.

    Raises ArgumentFault (naming the flag) for a path that does not exist, or a name that the Hub does not know;
    EnvironmentFault where the Hub cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    if not is_hub_name(name):
        raise ArgumentFault(f"--{flag}: {name} does not exist")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise EnvironmentFault(f"--{flag}: {name} is no folder here, and the Hub cannot be reached") from None
    except RepositoryNotFoundError as error:
        what = "neither a folder here nor a model of the Hub"
        raise ArgumentFault(f"--{flag}: {name} is {what}: {first_line(error)}") from None
    except HfHubHTTPError as error:
        raise ModelFault(f"--{flag}: {name}: {first_line(error)}") from None
