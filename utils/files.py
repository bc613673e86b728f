"""Writing so that a reader sees the old file or the new one, never half of one; hashing what lies on disk."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import EnvironmentFault, ModelFault

PART = ".part-"  # a file of this name is what a killed process left of one being written


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside `path`, flush to the disk, then rename over it. A failure leaves the old file as it was."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{PART}{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):  # what a full disk raises names no file
            error.filename = error.filename or str(path)
        raise


def json_text(value: object) -> str:
    """`value` as indented JSON, characters as they are, as it is written to the disk."""
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented UTF-8 JSON, atomically."""
    write_atomic(path, json_text(value))


@contextmanager
def disk_faults(place: Path) -> Iterator[None]:
    """Turn a full disk, in whatever class a library wraps it, into an EnvironmentFault that names the place."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and not any(words in str(error) for words in ("No space left", "failed writing", "unexpected pos")):
            raise
        raise EnvironmentFault(f"the disk of {place} is full; what was written before is whole") from error


def flush_folder(folder: Path, files: bool = True) -> None:
    """fsync the folder, and the files in it, so that a rename after it survives a power cut."""
    for path in [*(sorted(folder.iterdir()) if files else ()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def move_aside(path: Path) -> Path:
    """Give a file or folder the first name of NAME.old-1, NAME.old-2, … that is free; returns that.

    Raises EnvironmentFault where it cannot be moved: a disk is mounted there, or its folder may not be written.
    """
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    try:
        os.replace(path, aside)
    except OSError as error:
        raise EnvironmentFault(f"--overwrite: {path} cannot be moved away: {error.strerror}") from None
    print(f"moved the old {path} to {aside}")
    return aside


@contextmanager
def new_folder(output: Path, needed_bytes: int) -> Iterator[Path]:
    """An empty folder beside `output` that takes its name when the block ends well, and is removed when it does not.

    What a killed process left there is cleared; a living one holds it (flock). Raises ModelFault where `output` holds
    something, EnvironmentFault for a disk that is too small or full, and for a folder that another process is writing.
    """
    check_empty(output)
    output = output.resolve()
    staging = output.with_name(f"{PART}{output.name}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = _take(staging)
    except OSError as error:
        raise EnvironmentFault(f"--output_dir: {output} cannot be made: {error.strerror}") from None
    try:
        for path in staging.iterdir():
            path.unlink()
        free = shutil.disk_usage(staging).free
        if free < needed_bytes:
            sizes = f"{needed_bytes / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free"
            raise EnvironmentFault(f"--output_dir: the disk of {output} is too small: {sizes}")
        with disk_faults(output):
            yield staging
            flush_folder(staging)
        os.replace(staging, output)
        flush_folder(output.parent, files=False)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def check_empty(output: Path) -> None:
    """Raises ModelFault where `output` holds something already, or cannot be renamed over."""
    if output.exists() and any(output.iterdir()):
        raise ModelFault(f"--output_dir: {output} is not empty (choose another, or remove it)")
    if os.path.ismount(output):
        raise ModelFault(f"--output_dir: {output} is where a disk is mounted: name a folder in it")


def _take(staging: Path) -> int:
    staging.mkdir(exist_ok=True)
    lock = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gone = not staging.exists() or os.fstat(lock).st_ino != staging.stat().st_ino
    except BlockingIOError:
        gone = True
    if gone:  # a living process writes it, or has this very moment renamed it
        os.close(lock)
        raise EnvironmentFault(f"--output_dir: another process is writing {staging}")
    return lock


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_hash(paths: list[Path], block: int = 1 << 16, blocks: int = 64) -> str:
    """Hex SHA-256 over each file's name, size and up to `blocks` evenly spaced blocks.

    Small files are hashed whole. Large ones (weights) in milliseconds instead of minutes: another model, dtype or
    training run differs in every block; a single flipped bit may go unseen.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with open(path, "rb") as file:
            if size <= block * blocks:
                digest.update(file.read())
                continue
            for index in range(blocks):
                file.seek((size - block) * index // (blocks - 1))
                digest.update(file.read(block))
    return digest.hexdigest()
