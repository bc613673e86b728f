"""A disk that is full, too small, or cannot be written: every earlier artefact stays whole, and the run goes on later.

As root the disk is a real one of 32 MB in memory, filled up right before each write; else the writes are made to fail.
"""

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch

import finetune
from scripts.bench import kills
from utils import adapters, checkpoint, files, hooks, plots, record
from utils.errors import EnvironmentFault

# What a run writes: the module and name of the function behind which it happens, and its which call it is.
WRITES = {
    "run.json at the start": (record, "begin", 1),
    "metrics.jsonl of a step": (hooks.Metrics, "on_log", 3),
    "the first checkpoint": (checkpoint, "save", 1),
    "a later checkpoint": (checkpoint, "save", 4),
    "the final adapter": (adapters, "save_adapter", 1),
    "loss.png": (plots, "loss", 1),
    "run.json at the end": (record, "finish", 1),
}


@pytest.fixture(scope="module")
def campaign(base, tmp_path_factory) -> kills.Campaign:
    """A run that nobody disturbed, and what it ended with."""
    folder = tmp_path_factory.mktemp("disk")
    flags = {**kills.small_run(folder, str(base)), "num_epochs": 1, "val_set_size": 6, "batch_size": 6}
    return kills.Campaign(flags, folder, random.Random(0), forked=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small disk in memory where that is allowed, else a folder."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)]
    is_mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    yield place
    if is_mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, room: int) -> None:
    """Leave `room` bytes on the disk; where it is no disk of ours, let every flush and every save fail."""
    if not os.path.ismount(disk):

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        os.fsync = safetensors.torch.save_file = torch.save = full
        hooks.open = full
        return
    with open(disk / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(disk).free - room))


def full_before(disk: Path, where: str, room: int) -> None:
    """In the child: its disk is full from that write on."""
    owner, name, call = WRITES[where]
    plain = getattr(owner, name)
    calls = []

    def first_fill(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            fill(disk, room)
        return plain(*args, **kwargs)

    setattr(owner, name, first_fill)


def run(flags: dict, before: Callable[[], object] = kills.nothing) -> tuple[int, str]:
    log = flags["output_dir"].parent.with_suffix(".log")
    log.unlink(missing_ok=True)
    return kills.until(kills.start(flags, log, forked=True, before=before)), log.read_text(encoding="utf-8")


def check_full_then_free(campaign, disk: Path, where: str, room: int) -> None:
    """The run ends with 5 and one line, leaves whole things only, and goes on once there is space."""
    out = disk / "out"
    code, log = run({**campaign.flags, "output_dir": out}, partial(full_before, disk, where, room))
    error = log.splitlines()[-1]
    assert code == 5 and "Traceback" not in log, log
    assert error.startswith("finetune.py: error: ") and ("is full" in error or "No space left" in error)
    left = {path.name for path in out.iterdir()} if out.exists() else set()
    assert not [name for name in left if name.startswith((checkpoint.STAGING, files.PART))]
    assert [checkpoint.checkpoint_problem(folder) for folder in checkpoint.numbered(out)] == [None] * len(
        checkpoint.numbered(out)
    )
    if left & {record.NAME}:
        assert record.read(out)["status"] == "running"
    if "adapter_model.safetensors" in left:
        assert (out / "adapter_model.safetensors").read_bytes() == campaign.undisturbed["adapter"]
    (disk / "filler").unlink(missing_ok=True)
    code, log = run({**campaign.flags, "output_dir": out})
    assert code == 0, log
    assert kills.result(out) == campaign.undisturbed


@pytest.mark.parametrize("where", WRITES)
def test_a_full_disk_at_each_write_of_a_run(campaign, disk, where):
    check_full_then_free(campaign, disk, where, room=0)


@pytest.mark.parametrize("room", [8_192, 24_576, 40_960, 57_344, 73_728])
def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint(campaign, disk, room):
    if not os.path.ismount(disk):
        pytest.skip("needs a disk of its own, which only root can make")
    check_full_then_free(campaign, disk, "a later checkpoint", room)


def test_too_little_space_is_said_at_the_start(quick, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=19_000_000))
    with pytest.raises(EnvironmentFault, match=r"the run needs 20 MB for checkpoints, 19 MB are free"):
        finetune.train(**quick)
    assert not (Path(quick["output_dir"]) / record.NAME).exists()


def test_a_run_that_goes_on_need_not_find_the_space_of_its_own_checkpoints_again(tmp_path, monkeypatch):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "optimizer.pt").write_bytes(b"\0" * 1_000_000)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=500_000))
    checkpoint._check_space(tmp_path, 1_400_000)
    with pytest.raises(EnvironmentFault, match="too small"):
        checkpoint._check_space(tmp_path, 1_600_000)


def test_an_output_that_cannot_be_written_is_named(quick):
    with pytest.raises(EnvironmentFault, match="--output_dir: /proc/out cannot be written"):
        finetune.train(**{**quick, "output_dir": "/proc/out"})


def test_the_devices_memory_may_end_in_the_middle_and_the_checkpoint_stays(quick, monkeypatch):
    from utils import training

    plain, calls = training.label_loss, []

    def full(model, inputs, head):
        calls.append(model.training)
        if calls.count(True) == 5:
            raise torch.OutOfMemoryError
        return plain(model, inputs, head)

    monkeypatch.setattr(training, "label_loss", full)
    with pytest.raises(EnvironmentFault, match=r"reduce --micro_batch_size \(1\)"):
        finetune.train(**quick)
    (kept, *_) = checkpoint.numbered(Path(quick["output_dir"]))
    assert kept.name == "checkpoint-2" and checkpoint.checkpoint_problem(kept) is None
    monkeypatch.undo()
    finetune.train(**quick)
    assert record.read(Path(quick["output_dir"]))["status"] == "complete"
