"""Tables that are kept between runs, found by the content of what they were made from.

A table is built once, under a lock, and appears by rename with its hash beside it; one that is no longer what was
written is built again. Deleting the folder is always safe. Standard library only.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from utils.errors import EnvironmentFault
from utils.files import disk_faults, sha256_file, write_json

TABLE, INFO = "table.arrow", "info.json"


def folder() -> Path:
    """DREAMERGPT_CACHE, else dreamergpt in XDG_CACHE_HOME or ~/.cache."""
    ours, users = (os.environ.get(name) for name in ("DREAMERGPT_CACHE", "XDG_CACHE_HOME"))
    return Path(ours) if ours else Path(users or Path.home() / ".cache") / "dreamergpt"


def digest(**parts: object) -> str:
    """Hex SHA-256 of values that JSON can write: a table's name, the same for the same content anywhere."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def table(name: str, build: Callable[[Path], dict]) -> tuple[Path, dict]:
    """(file, info) of the table `name`.

    Where there is none yet, `build` writes it to the path it is given and returns its info (what JSON can write). Of
    several processes one builds and the others wait. Raises EnvironmentFault where the folder cannot be written, or
    its disk is full.
    """
    root = folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / f"{name}.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise EnvironmentFault(
            f"{root} cannot be written: {error.strerror} (DREAMERGPT_CACHE names another place)"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entry = root / name
        if (info := _whole(entry)) is None:
            info = _build(entry, build)
    return entry / TABLE, info


def _whole(entry: Path) -> dict | None:
    """The entry's info if its table is what was written, else None."""
    if not entry.exists():
        return None
    try:
        record = json.loads((entry / INFO).read_text(encoding="utf-8"))
        if record["sha256"] == sha256_file(entry / TABLE):
            return record["info"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    print(f"{entry} is damaged: it is built again")
    return None


def _build(entry: Path, build: Callable[[Path], dict]) -> dict:
    staging = entry.with_name(f".{entry.name}")
    shutil.rmtree(staging, ignore_errors=True)  # of a process that died
    staging.mkdir()
    try:
        with disk_faults(entry.parent):
            info = build(staging / TABLE)
            write_json(staging / INFO, {"sha256": sha256_file(staging / TABLE), "info": info})
        shutil.rmtree(entry, ignore_errors=True)
        os.replace(staging, entry)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return info
