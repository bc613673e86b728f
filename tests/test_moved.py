"""A tree that was moved as a whole: base, data and stages are found where they lie now, as they lay to each other."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_models
from conftest import write_rows

import finetune
import merge_lora
from scripts import lineage
from utils import record
from utils.errors import ModelFault


@pytest.fixture(scope="module")
def moved(base, tmp_path_factory) -> Path:
    """A base, two data files, two stages and a merge, made in one place and moved to another."""
    here, there = (tmp_path_factory.mktemp(name) / "tree" for name in ("here", "there"))
    here.mkdir()
    shutil.copytree(base, here / "base")
    for number, parent in enumerate(("", "output/0")):
        train(here, number, parent)
    merge_lora.main(
        base_model=str(here / "base"), lora_model=str(here / "output/1"), output_dir=str(here / "models/merged")
    )
    here.rename(there)
    return there


def train(root: Path, number: int, parent: str, **more) -> dict:
    """A stage of a few steps in root/output/<number>; its run.json."""
    rows = tiny_models.ROWS[number:] + tiny_models.ROWS[:number]
    data = root / f"rows-{number}.json"
    finetune.train(
        base_model=str(root / "base"),
        data_path=str(data) if data.exists() else write_rows(data, rows),
        output_dir=str(root / "output" / str(number)),
        resume_from_checkpoint=str(root / parent) if parent else "",
        **{"batch_size": 4, "micro_batch_size": 2, "num_epochs": 1, "learning_rate": 1e-2, "val_set_size": 3}
        | {"lora_r": 4, "load_8bit": False, "train_on_inputs": False, **more},
    )
    return record.read(root / "output" / str(number))


def test_the_whole_chain_is_drawn_and_passes(moved, capsys):
    lineage.show(str(moved / "output/1"))
    shown = capsys.readouterr().out
    assert "1  0      rows-0" in shown and "2  1      rows-1" in shown and "no run.json tells" not in shown
    lineage.verify(str(moved / "output/1"))
    named = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert len(named) == 9 and all(Path(name).is_relative_to(moved) for name in named if name != "alpaca")
    lineage.verify(str(moved / "models/merged"))
    assert str(moved / "output/1/adapter_model.safetensors") in capsys.readouterr().out


@pytest.mark.parametrize("file", ["rows-0.json", "base/config.json", "output/0/adapter_config.json"])
def test_what_has_changed_since_is_still_named(moved, file):
    before = (moved / file).read_bytes()
    (moved / file).write_bytes(before + b"\n")
    try:
        with pytest.raises(ModelFault, match=r"^1 of 9 .* -> "):
            lineage.verify(str(moved / "output/1"))
    finally:
        (moved / file).write_bytes(before)


def test_a_later_stage_measures_and_replays_the_earlier_ones(moved):
    run = train(moved, 2, "output/1", replay=0.5, max_forget=100.0)
    assert [("loss" in item, item["stage"]) for item in run["held_out"]] == [(True, "0"), (True, "1")]
    assert sum(item["rows"] for item in run["rows"]["replayed"]) == 2


def test_a_run_goes_on_after_the_move(moved, tmp_path):
    shutil.copytree(moved, tmp_path / "tree")
    out = tmp_path / "tree/output/1"
    whole = (out / "adapter_model.safetensors").read_bytes()
    (out / "adapter_model.safetensors").unlink()
    (out / "run.json").write_text(json.dumps({**record.read(out), "status": "running"}))
    assert train(tmp_path / "tree", 1, "output/0")["folder"] == str(out)
    assert (out / "adapter_model.safetensors").read_bytes() == whole


def test_what_is_where_it_was_is_taken_from_there(tmp_path):
    """A copy beside other files of the same names is still made of what it was made of."""
    for place in ("one", "two"):
        write_rows((tmp_path / place).mkdir() or tmp_path / place / "rows.json", [])
    run = {"folder": str(tmp_path / "one/out"), "data": [{"path": str(tmp_path / "one/rows.json")}], "parent": None}
    assert record._where_it_lies(run, tmp_path / "two/out") == run
    (tmp_path / "one/rows.json").unlink()
    found = record._where_it_lies(run, tmp_path / "two/out")["data"]
    assert found == [{"path": str(tmp_path / "two/rows.json")}]
    (tmp_path / "two/rows.json").unlink()
    assert record._where_it_lies(run, tmp_path / "two/out") == run
