"""A run that was broken off goes on with the same command and ends with the same bytes; another run is refused."""

import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import tiny_models
from conftest import write_rows

import finetune
from scripts.bench import kills
from utils import adapters, checkpoint, hooks, models, record
from utils.errors import ModelFault

HASHES = r"[0-9a-f]{12}\]? -> \[?[0-9a-f]{12}"


class Broken(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture
def break_at(monkeypatch):
    """break_at(step): from now on a run ends when that step is logged (None: it runs through)."""
    plain = hooks.Metrics.on_log

    def break_at(last: int | None):
        def on_log(self, args, state, control, logs=None, **kwargs):
            plain(self, args, state, control, logs=logs, **kwargs)
            if "loss" in logs and state.global_step == last:
                raise Broken

        monkeypatch.setattr(hooks.Metrics, "on_log", on_log)

    return break_at


@pytest.fixture
def interrupted(break_at, train):
    """interrupted(flags, *steps): train, broken off at each of the steps, and at last to the end."""

    def run(flags: dict, *steps: int) -> dict:
        for step in steps:
            break_at(step)
            with pytest.raises(Broken):
                train(**flags)
        break_at(None)
        train(**flags)
        return kills.result(Path(flags["output_dir"]))

    return run


@pytest.fixture(scope="module")
def first_stage(base, tmp_path_factory) -> dict:
    """A finished stage of six steps with two rows held out: parent of others, and looked at by tests that change
    nothing."""
    folder = tmp_path_factory.mktemp("first")
    flags = {
        "base_model": str(base),
        "data_path": write_rows(folder / "rows.json", tiny_models.ROWS),
        "output_dir": str(folder / "first"),
        "batch_size": 2,
        "micro_batch_size": 1,
        "num_epochs": 2,
        "val_set_size": 2,
        "load_8bit": False,
        "learning_rate": 1e-2,
        "lora_dropout": 0.0,
        "train_on_inputs": False,
    }
    finetune.train(**flags)
    return flags


@pytest.fixture
def copy(first_stage, tmp_path) -> dict:
    """The flags of the first stage with a copy of what it wrote, as if it had been killed before the final adapter."""
    shutil.copytree(first_stage["output_dir"], tmp_path / "copy")
    for name in ("adapter_model.safetensors", "adapter_config.json", "loss.png"):
        (tmp_path / "copy" / name).unlink()
    set_status(tmp_path / "copy", "running")
    return {**first_stage, "output_dir": str(tmp_path / "copy")}


def set_status(folder: Path, status: str) -> None:
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "status": status}))


WAYS = {
    "plain": ({}, (1, 2)),
    "several epochs, the last step of each smaller": (
        {"num_epochs": 3, "batch_size": 4, "micro_batch_size": 2},
        (2, 3),
    ),
    "group_by_length": ({"num_epochs": 3, "group_by_length": True}, (4, 7)),
    "no evaluation": ({"num_epochs": 2, "val_set_size": 0}, (3,)),
    "8-bit": ({"num_epochs": 2, "load_8bit": True}, (4,)),
    "loss on the prompts too, dropout and noise": (
        {"num_epochs": 2, "train_on_inputs": True, "lora_dropout": 0.5, "neftune_noise_alpha": 5.0},
        (3, 4),
    ),
}


# The ways in which BLOOM goes another way: padded rows, and its own layers in 8 bits.
FAMILIES = [("llama", way) for way in WAYS] + [("bloom", "group_by_length"), ("bloom", "8-bit")]


@pytest.mark.parametrize(("family", "way"), FAMILIES, indirect=["family"])
def test_a_broken_run_ends_with_the_bytes_of_an_unbroken_one(quick, tmp_path, interrupted, way):
    more, steps = WAYS[way]
    flags = {**quick, **more}
    whole = interrupted({**flags, "output_dir": str(tmp_path / "whole")})
    assert interrupted(flags, *steps) == whole
    assert not whole["left over"]


def test_several_data_files_in_shares(quick, tmp_path, interrupted):
    more = [{**row, "instruction": f"再说一次：{row['instruction']}"} for row in tiny_models.ROWS]
    files = f"{quick['data_path']},{write_rows(tmp_path / 'more.json', more)}"
    flags = {**quick, "data_path": files, "data_mix": ("0.6", "0.4"), "num_epochs": 2}
    whole = interrupted({**flags, "output_dir": str(tmp_path / "whole")})
    assert interrupted(flags, 2, 7) == whole
    with pytest.raises(ModelFault, match=r"data: \[\w{12},\w{12}\] -> \[\w{12}\]; --data_mix: \[0.6,0.4\] -> \[\]"):
        finetune.train(**{**flags, "data_path": quick["data_path"], "data_mix": ()})


def test_the_best_adapter_of_an_earlier_process_is_the_one_saved(quick, tmp_path, interrupted):
    rising = {**quick, "num_epochs": 30, "lora_r": 16, "learning_rate": 3e-2, "lora_dropout": 0.0}
    whole = interrupted({**rising, "output_dir": str(tmp_path / "whole")})
    best, last = whole["run"]["losses"]["best_step"], whole["run"]["steps"]
    assert best < last - 20  # so that it lies before the break
    assert interrupted(rising, last - 10) == whole


def test_a_later_stage_with_replay_broken_and_broken_again(quick, first_stage, tmp_path, interrupted):
    flags = {**quick, "resume_from_checkpoint": first_stage["output_dir"], "replay": 0.5, "num_epochs": 2}
    whole = interrupted({**flags, "output_dir": str(tmp_path / "whole")})
    assert interrupted(flags, 1, 5) == whole
    assert len(whole["run"]["held_out"]) == 1


def test_a_chain_broken_in_every_stage_and_at_every_boundary(quick, tmp_path, interrupted, monkeypatch):
    def chain(folder: Path, steps: tuple, at_boundaries: bool) -> list[dict]:
        results, parent = [], ""
        for number in range(3):
            more = {"seed": number, "output_dir": str(folder / str(number)), "resume_from_checkpoint": parent}
            if at_boundaries:  # the adapter is written, and the process dies before it can say so
                monkeypatch.setattr(record, "finish", lambda *_: (_ for _ in ()).throw(Broken))
                with pytest.raises(Broken):
                    finetune.train(**quick, **more)
                with pytest.raises(ModelFault, match="is not complete"):
                    finetune.train(**quick, **more | {"resume_from_checkpoint": more["output_dir"], "output_dir": "x"})
                monkeypatch.undo()
            results.append(interrupted({**quick, **more}, *steps))
            parent = more["output_dir"]
        return results

    quick.pop("output_dir")
    whole = chain(tmp_path / "whole", (), at_boundaries=False)
    assert chain(tmp_path / "boundaries", (), at_boundaries=True) == whole
    assert chain(tmp_path / "steps", (1, 2), at_boundaries=False) == whole
    assert len({stage["adapter"] for stage in whole}) == 3


def test_another_micro_batch_goes_on_with_the_same_rows_in_each_step(copy, first_stage, capsys):
    out = Path(copy["output_dir"])
    shutil.rmtree(out / "checkpoint-6")
    finetune.train(**{**copy, "micro_batch_size": 2})
    assert "--micro_batch_size 1 -> 2" in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["micro_batch_sizes"] == [1, 2]
    ours, theirs = (kills.result(Path(flags["output_dir"]))["metrics"] for flags in (copy, first_stage))
    assert [line.get("tokens") for line in ours] == [line.get("tokens") for line in theirs]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (ours, theirs)]
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_other_libraries_are_announced(copy, capsys):
    path = Path(copy["output_dir"]) / "run.json"
    run = json.loads(path.read_text())
    now = run["versions"]["torch"]
    path.write_text(json.dumps({**run, "versions": {**run["versions"], "torch": "1.0"}}))
    finetune.train(**copy)
    assert f"warning: torch 1.0 -> {now}: the run goes on, but its bytes may differ" in capsys.readouterr().err


# Every setting that changes the mathematics, with another value than the copy's.
OTHER = {
    "batch_size": 4, "num_epochs": 3, "learning_rate": 3e-2, "cutoff_len": 128, "val_set_size": 1, "lora_r": 4,
    "lora_alpha": 32, "lora_dropout": 0.1, "lora_target_modules": ("q_proj", "k_proj"), "train_on_inputs": True,
    "group_by_length": True, "load_8bit": True, "load_4bit": True, "dtype": "bfloat16", "seed": 43, "replay": 0.1,
    "use_rslora": True, "neftune_noise_alpha": 5.0,
    "data_mix": ("1.0",), "last_turn_only": True, "fast": False,
}  # fmt: skip
SIGNATURE = inspect.signature(finetune.train).parameters
CONTENT = {"base_model", "data_path", "resume_from_checkpoint", "prompt_template_name"}  # compared by their hashes


def test_no_setting_is_forgotten():
    assert set(OTHER) == set(record.MATHEMATICAL) <= set(SIGNATURE)
    assert set(SIGNATURE) - set(OTHER) - CONTENT == {
        "output_dir", "overwrite", "dry_run", "micro_batch_size", "force_base", "max_forget", "add_eos_token",
        "wandb_project", "wandb_run_name", "wandb_watch", "wandb_log_model", "tensorboard",
    }  # fmt: skip


@pytest.mark.parametrize("status", ["running", "complete"])
@pytest.mark.parametrize("name", [name for name in OTHER if name != "replay"])
def test_each_changed_setting_is_refused_with_old_and_new(copy, name, status, monkeypatch):
    out = Path(copy["output_dir"])
    set_status(out, status)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(models, "load_base", lambda *_: pytest.fail("the base was loaded"))
    old, new = copy.get(name, SIGNATURE[name].default), OTHER[name]
    old, new = (",".join(value) if isinstance(value, tuple) else value for value in (old, new))
    with pytest.raises(ModelFault, match=re.escape(f"--{name}: ").replace(":", ".*") + f".*{old}.* -> .*{new}"):
        finetune.train(**{**copy, name: OTHER[name]})
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_changed_replay_template_or_parent_is_refused(quick, first_stage, tmp_path):
    flags = {**quick, "resume_from_checkpoint": first_stage["output_dir"]}
    finetune.train(**flags)
    with pytest.raises(ModelFault, match=r"--replay: 0\.0 -> 0\.1"):
        finetune.train(**{**flags, "replay": OTHER["replay"]})
    with pytest.raises(ModelFault, match=r"starting adapter: [0-9a-f]{12} -> None"):
        finetune.train(**{**flags, "resume_from_checkpoint": ""})
    with pytest.raises(ModelFault, match=f"template: {HASHES}"):
        finetune.train(**{**first_stage, "prompt_template_name": "vigogne"})


def test_flags_of_logging_never_count(copy, first_stage):
    run = json.loads((Path(first_stage["output_dir"]) / "run.json").read_text())
    free = dict.fromkeys(set(SIGNATURE) - set(OTHER), "else")
    assert record.differences(run, {**run, "settings": {**run["settings"], **free}}) == []
    finetune.train(**{**copy, "wandb_run_name": "another", "wandb_watch": "all"})
    assert kills.result(Path(copy["output_dir"])) == kills.result(Path(first_stage["output_dir"]))


def test_base_and_data_may_lie_elsewhere_and_must_hold_the_same(copy, first_stage, tmp_path):
    shutil.copytree(copy["base_model"], tmp_path / "base")
    shutil.copy(copy["data_path"], tmp_path / "elsewhere.json")
    moved = {**copy, "base_model": str(tmp_path / "base"), "data_path": str(tmp_path / "elsewhere.json")}
    with open(moved["data_path"], "a") as file:
        file.write("\n")
    with pytest.raises(ModelFault, match=rf"data: \[?{HASHES}"):
        finetune.train(**moved)
    shutil.copy(copy["data_path"], moved["data_path"])
    weights = tmp_path / "base" / "model.safetensors"
    flip(weights, weights.stat().st_size - 1)
    with pytest.raises(ModelFault, match=f"base model: {HASHES}"):
        finetune.train(**moved)
    flip(weights, weights.stat().st_size - 1)
    finetune.train(**moved)
    ours, theirs = (kills.result(Path(flags["output_dir"])) for flags in (copy, first_stage))
    assert ours["adapter"] == theirs["adapter"] and ours["metrics"] == theirs["metrics"]  # the config names the path
    assert json.loads((Path(copy["output_dir"]) / "run.json").read_text())["base"]["path"] == str(tmp_path / "base")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_data_that_changes_during_the_run_is_found_when_it_ends(quick, tmp_path, break_at, interrupted):
    whole = interrupted({**quick, "output_dir": str(tmp_path / "whole")})
    data = Path(quick["data_path"])
    before = data.read_bytes()
    break_at(2)
    with pytest.raises(Broken):
        finetune.train(**quick)
    break_at(None)
    plain = checkpoint.save

    def save(*arguments):
        data.write_bytes(before + b"\n")
        plain(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ModelFault, match=f"changed during the run: {HASHES}"):
        patch.setattr(checkpoint, "save", save)
        finetune.train(**quick)
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    with pytest.raises(ModelFault, match=rf"data: \[?{HASHES}"):
        finetune.train(**quick)
    data.write_bytes(before)
    assert interrupted(quick) == whole


def test_what_a_dead_process_left_half_written_is_no_obstacle(quick, tmp_path, interrupted):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".part-run.json.abc").write_text('{"ki')  # killed before anything else was written
    (out / ".lock").touch()
    result = interrupted(quick, 2)
    assert not result["left over"]
    (out / ".staging-7").mkdir()
    finetune.train(**quick)
    assert kills.result(out) == result


def test_a_spoiled_final_adapter_is_made_again_from_the_last_checkpoint(first_stage, copy, capsys):
    out, whole = Path(copy["output_dir"]), kills.result(Path(first_stage["output_dir"]))
    finetune.train(**copy)
    flip(out / "adapter_model.safetensors", 5000)
    with pytest.raises(ModelFault, match=r"adapter_model\.safetensors is not what was written"):
        finetune.train(**{**copy, "output_dir": f"{out}-next", "resume_from_checkpoint": str(out)})
    capsys.readouterr()
    finetune.train(**copy)
    assert "is made again from the last checkpoint" in capsys.readouterr().out
    assert kills.result(out) == whole
    (out / "adapter_config.json").unlink()
    for folder in out.glob("checkpoint-*"):
        shutil.rmtree(folder)
    with pytest.raises(ModelFault, match=r"adapter_config\.json is gone, and there is no checkpoint"):
        finetune.train(**copy)


def test_a_checkpoint_of_another_run_starts_a_stage_only_while_it_is_whole(first_stage, tmp_path):
    theirs = tmp_path / "checkpoint-6"
    shutil.copytree(Path(first_stage["output_dir"]) / "checkpoint-6", theirs)
    new = {**first_stage, "output_dir": str(tmp_path / "new"), "resume_from_checkpoint": str(theirs), "num_epochs": 1}
    finetune.train(**new)
    flip(theirs / adapters.ADAPTER_FILES[0], 5000)
    with pytest.raises(ModelFault, match=r"checkpoint-6: adapter_model\.safetensors is not what was written"):
        finetune.train(**{**new, "output_dir": str(tmp_path / "newer")})
