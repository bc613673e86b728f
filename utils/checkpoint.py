"""Checkpoints that can be trusted, and which run an output folder holds.

A checkpoint is written into a staging folder, flushed, given a manifest of hashes, and renamed; it is believed only
after every hash is checked. One process at a time owns an output folder (flock).
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from utils import record
from utils.errors import EnvironmentFault, ModelFault
from utils.files import PART, disk_faults, flush_folder, json_text, move_aside, sha256_file, write_json

MANIFEST = "manifest.json"
LOCK = ".lock"
STAGING = ".staging-"
KEPT = 2


@dataclass
class Start:
    """Where a run begins: complete (nothing to do), checkpoint (go on there) or neither (a new run).

    lock: the open file that keeps other runs out of the folder as long as this object lives; a copy that goes to
    another process of the run has none.
    """

    complete: bool = False
    checkpoint: Path | None = None
    lock: object = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "lock": None}


def needed_bytes(adapter_bytes: int) -> int:
    """Disk space a run needs: KEPT + 1 checkpoints (adapter, best adapter, two optimizer moments), the final adapter,
    and some for logs."""
    return (4 * (KEPT + 1) + 1) * adapter_bytes + 20_000_000


def starting_point(output_dir: str, run: dict, overwrite: bool, needed_bytes: int = 0, dry_run: bool = False) -> Start:
    """Decide by what lies in output_dir whether `run` is new, goes on, or is done; take the folder for this process. A
    dry run is new wherever it is, and takes nothing.

    Raises ModelFault, naming each difference, for a folder that holds another run or something else (which is left as
    it is), and for one whose checkpoints are all broken; EnvironmentFault for a folder that another process is
    writing, or a disk with less than needed_bytes free.
    """
    if dry_run:
        return Start()
    output = Path(output_dir)
    held = output.exists() and any(not _is_left_over(path) for path in output.iterdir())
    if held and not overwrite and record.read(output) is None:
        raise ModelFault(f"--output_dir: {output} is not empty and holds no run of this toolkit (choose another)")
    lock = _lock(output)
    if held and overwrite:
        move_aside(output)
        lock = _lock(output)
    old = record.read(output)
    if old is None:
        _check_space(output, needed_bytes)
        return Start(lock=lock)
    if changes := record.differences(old, run):
        raise ModelFault(f"--output_dir: {output} holds another run ({'; '.join(changes)}); --overwrite moves it away")
    _remove_left_overs(output)
    is_complete = old.get("status") == "complete"
    spoiled = record.changed_file(output, old) if is_complete else None
    if is_complete and not spoiled:
        return Start(complete=True, lock=lock)
    _check_space(output, needed_bytes)
    checkpoint = newest_checkpoint(output)
    if spoiled and checkpoint is None:
        raise ModelFault(f"{spoiled}, and there is no checkpoint to make it from; --overwrite starts anew")
    if spoiled:
        print(f"{spoiled}: it is made again from the last checkpoint")
    else:
        print(f"{output} goes on: {checkpoint}" if checkpoint else f"{output} starts again: it has no checkpoint yet")
    return Start(checkpoint=checkpoint, lock=lock)


def _is_left_over(path: Path) -> bool:
    """Whether nobody misses it: the lock, or what a killed process left of something being written."""
    return path.name == LOCK or path.name.startswith((STAGING, PART))


def _remove_left_overs(output: Path) -> None:
    for path in output.iterdir():
        if _is_left_over(path) and path.is_dir():
            shutil.rmtree(path)
        elif _is_left_over(path) and path.name != LOCK:
            path.unlink()


def _lock(output: Path) -> object:
    """Take the folder (made if need be). The lock dies with the process, however it dies."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        file = open(output / LOCK, "w")  # noqa: SIM115 (held open on purpose)
    except OSError as error:
        raise EnvironmentFault(f"--output_dir: {output} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise EnvironmentFault(f"--output_dir: another process is writing {output}") from None
    return file


def _check_space(output: Path, needed: int) -> None:
    """Old checkpoints count as free: the run replaces them."""
    free = shutil.disk_usage(output).free
    free += sum(path.stat().st_size for folder in numbered(output) for path in folder.glob("*") if path.is_file())
    if free < needed:
        sizes = f"{needed / 1e6:.0f} MB for checkpoints, {free / 1e6:.0f} MB are free"
        raise EnvironmentFault(f"--output_dir: the disk of {output} is too small: the run needs {sizes}")


def numbered(output: Path) -> list[Path]:
    """The checkpoint-N folders, newest (highest N) first."""
    folders = [path for path in output.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(folders, key=lambda path: -int(path.name.rpartition("-")[2]))


def newest_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint, None where there never was one. Broken ones are named and kept (corrupt-…).

    Raises ModelFault, with each reason, when there are (or were, kept as corrupt-…) checkpoints and none is whole.
    """
    reasons = []
    for folder in numbered(output):
        problem = checkpoint_problem(folder) or _step_problem(folder)
        if problem is None:
            return folder
        kept = _keep_corrupt(folder)
        reasons.append(f"{folder.name}: {problem}")
        print(f"{folder} is not used, kept as {kept.name}: {problem}")
    reasons = reasons or [f"{path.name} is kept" for path in sorted(output.glob("corrupt-checkpoint-*"))]
    if reasons:
        raise ModelFault(f"{output}: no checkpoint is whole ({'; '.join(reasons)}); --overwrite starts anew")
    return None


def _keep_corrupt(folder: Path) -> Path:
    kept = folder.with_name(f"corrupt-{folder.name}")
    number = 1
    while kept.exists():
        kept, number = folder.with_name(f"corrupt-{folder.name}.{number}"), number + 1
    os.replace(folder, kept)
    return kept


def checkpoint_problem(folder: Path) -> str | None:
    """Why a checkpoint cannot be believed, or None: every file of its manifest is there with the hash it had, and
    nothing else."""
    try:
        manifest = (folder / MANIFEST).read_bytes().decode("utf-8")
        expected = dict(json.loads(manifest)["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    for name, sha256 in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        try:
            now = sha256_file(folder / name)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if now != sha256:
            return f"{name} is not what was written ({(folder / name).stat().st_size} bytes)"
    extra = {path.name for path in folder.iterdir()} - expected.keys() - {MANIFEST}
    if extra:
        return f"{sorted(extra)[0]} does not belong to it"
    return None if manifest == json_text({"files": expected}) else f"{MANIFEST} is not what was written"


def _step_problem(folder: Path) -> str | None:
    """Why a whole checkpoint is not the one of its name: a copy of another would be taken again and again."""
    step = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    return None if folder.name == f"checkpoint-{step}" else f"it is that of step {step}"


def save(output: Path, step: int, write: Callable[[Path], None]) -> None:
    """Write checkpoint-<step> whole or not at all; then remove all but the newest ones.

    write: fills the staging folder it is given. Raises EnvironmentFault when the disk is full; older checkpoints stay.
    """
    staging, final = output / f"{STAGING}{step}", output / f"checkpoint-{step}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        with disk_faults(output):
            write(staging)
            hashes = {path.name: sha256_file(path) for path in sorted(staging.iterdir())}
            write_json(staging / MANIFEST, {"files": hashes})
            flush_folder(staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if final.exists():
        shutil.rmtree(final)
    os.replace(staging, final)
    flush_folder(output, files=False)
    for old in numbered(output)[KEPT:]:  # renamed first: a checkpoint is whole as long as it bears its name
        os.replace(old, output / f"{STAGING}{old.name}")
        shutil.rmtree(output / f"{STAGING}{old.name}")
