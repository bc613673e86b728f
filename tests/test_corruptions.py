"""Three hundred ways in which a checkpoint can be spoiled on the disk: each is found, and the one before it is used."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
from conftest import write_rows

import finetune
from utils import checkpoint, record
from utils.errors import ModelFault

NEWEST, BEFORE = "checkpoint-3", "checkpoint-2"


@pytest.fixture(scope="module")
def written(base, tmp_path_factory) -> Path:
    """What a run of three steps wrote; never changed by a test."""
    folder = tmp_path_factory.mktemp("written")
    finetune.train(
        base_model=str(base),
        data_path=write_rows(folder / "rows.json", tiny_models.ROWS),
        output_dir=str(folder / "out"),
        batch_size=2,
        micro_batch_size=1,
        num_epochs=1,
        val_set_size=2,
        lora_r=4,
        load_8bit=False,
        learning_rate=1e-2,
    )
    return folder / "out"


def flip(path: Path, draw: random.Random) -> None:
    """One bit, anywhere."""
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def cut(path: Path, draw: random.Random) -> None:
    """The end is missing."""
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def empty(path: Path, draw: random.Random) -> None:
    """Nothing of it was written."""
    path.write_bytes(b"")


def zeros(path: Path, draw: random.Random) -> None:
    """The length is right, the end was never written (a power cut)."""
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content[: draw.randrange(len(content))].ljust(path.stat().st_size, b"\0"))


def longer(path: Path, draw: random.Random) -> None:
    """Something stands behind it."""
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randint(1, 9)))


def gone(path: Path, draw: random.Random) -> None:
    """The file is missing."""
    path.unlink()


def older(path: Path, draw: random.Random) -> None:
    """It is the file of the checkpoint before; where that is the same file, one of its bits differs."""
    before = (path.parent.parent / BEFORE / path.name).read_bytes()
    if before == path.read_bytes():
        return flip(path, draw)
    return path.write_bytes(before) and None


def other(path: Path, draw: random.Random) -> None:
    """A byte is another one."""
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    content[place] = (content[place] + draw.randint(1, 255)) % 256
    path.write_bytes(content)


def stranger(path: Path, draw: random.Random) -> None:
    """A file beside it that does not belong there."""
    path.with_name(f"{path.name}.{draw.randrange(1000)}").write_bytes(b"?")


WAYS: tuple[Callable[[Path, random.Random], None], ...] = (
    flip, cut, empty, zeros, longer, gone, older, other, stranger
)  # fmt: skip


@pytest.mark.parametrize("seed", range(300))
def test_a_corruption_is_found_and_the_checkpoint_before_is_used(written, tmp_path, capsys, seed):
    for name in (NEWEST, BEFORE):
        shutil.copytree(written / name, tmp_path / name)
    files = sorted((tmp_path / NEWEST).iterdir())
    draw = random.Random(seed)
    file, way = files[seed % len(files)], WAYS[seed // len(files) % len(WAYS)]
    way(file, draw)
    assert checkpoint.checkpoint_problem(tmp_path / NEWEST), (way.__doc__, file.name)
    assert checkpoint.newest_checkpoint(tmp_path) == tmp_path / BEFORE
    assert (tmp_path / f"corrupt-{NEWEST}").is_dir() and not (tmp_path / NEWEST).exists()
    assert f"{tmp_path / NEWEST} is not used, kept as corrupt-{NEWEST}: " in capsys.readouterr().out


def test_each_file_meets_each_way(written):
    files = len(list((written / NEWEST).iterdir()))
    assert files >= 10 and files * len(WAYS) <= 300
    names = {path.name for path in (written / NEWEST).iterdir()}
    assert names >= {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "best_model.safetensors"}


def test_a_checkpoint_as_it_was_written_is_whole_and_names_no_staging_folder(written):
    for name in (NEWEST, BEFORE):
        assert checkpoint.checkpoint_problem(written / name) is None
        assert checkpoint.STAGING not in (written / name / "trainer_state.json").read_text(encoding="utf-8")


def test_a_copy_under_another_number_is_not_taken_for_it(written, tmp_path, capsys):
    shutil.copytree(written / NEWEST, tmp_path / NEWEST)
    shutil.copytree(written / BEFORE, tmp_path / "checkpoint-99")
    assert checkpoint.newest_checkpoint(tmp_path) == tmp_path / NEWEST
    assert "checkpoint-99 is not used, kept as corrupt-checkpoint-99: it is that of step 2" in capsys.readouterr().out


def test_a_folder_with_nothing_in_it_is_no_checkpoint(tmp_path):
    (tmp_path / NEWEST).mkdir()
    assert "manifest.json is missing" in checkpoint.checkpoint_problem(tmp_path / NEWEST)


def stopped(written: Path, target: Path) -> dict:
    """The flags of the run, with a copy of what it wrote as if it had not ended."""
    shutil.copytree(written, target)
    run = json.loads((target / record.NAME).read_text(encoding="utf-8"))
    (target / record.NAME).write_text(json.dumps({**run, "status": "running"}), encoding="utf-8")
    return {**run["settings"], "output_dir": str(target)}


def test_no_whole_checkpoint_is_refused_with_each_reason_now_and_ever_after(written, tmp_path):
    flags = stopped(written, tmp_path / "out")
    (tmp_path / "out" / NEWEST / "optimizer.pt").unlink()
    (tmp_path / "out" / BEFORE / "rng_state.pth").write_bytes(b"")
    reasons = rf"{NEWEST}: optimizer\.pt is missing; {BEFORE}: rng_state\.pth is not what was written \(0 bytes\)"
    with pytest.raises(ModelFault, match=rf"no checkpoint is whole \({reasons}\); --overwrite"):
        finetune.train(**flags)
    for _ in range(2):  # the broken ones have been put aside: that is no reason to start from scratch
        with pytest.raises(ModelFault, match=rf"no checkpoint is whole \(corrupt-{BEFORE} is kept.*--overwrite"):
            finetune.train(**flags)
    assert sorted(path.name for path in (tmp_path / "out").glob("*checkpoint*")) == [
        f"corrupt-{BEFORE}", f"corrupt-{NEWEST}"
    ]  # fmt: skip


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_broken_run_json_ends_the_run_and_touches_nothing(written, tmp_path, content):
    flags = stopped(written, tmp_path / "out")
    (tmp_path / "out" / record.NAME).write_bytes(content)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(ModelFault, match=r"run\.json cannot be read"):
        finetune.train(**flags)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
