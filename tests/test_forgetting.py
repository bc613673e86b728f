"""What a stage does to the ones before it: measured as a separate evaluation measures it, limited, and lessened."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ALL_LINEAR, both_families, write_rows

import finetune
from scripts.bench import kills
from utils import adapters, dataset, forgetting, models, record, training
from utils.batching import collate
from utils.errors import DataFault, ModelFault
from utils.prompter import Prompter

ROOT = Path(__file__).resolve().parent.parent
INFINITY = float("inf")


def rows(word: str, answer: str) -> list[dict]:
    return [{"instruction": f"{word}{number}号，你说什么？", "input": "", "output": answer} for number in range(20)]


@pytest.fixture(scope="module")
def first(base, family, train, once) -> dict:
    """A stage that learned to answer 北京。"""

    def learned(folder: Path) -> dict:
        flags = {
            "base_model": str(base),
            "data_path": write_rows(folder / "first.json", rows("首都", "北京。")),
            "output_dir": str(folder / "first"),
            "batch_size": 4,
            "micro_batch_size": 4,
            "num_epochs": 6,
            "learning_rate": 1e-2,
            "val_set_size": 4,
            "lora_dropout": 0.0,
            "lora_target_modules": ALL_LINEAR[family],
            "train_on_inputs": False,
            "prompt_template_name": "alpaca_short",
            "load_8bit": False,
        }
        train(**flags)
        return flags

    return once(f"{family}-forgetting", learned)


@pytest.fixture(scope="module")
def following(first, tmp_path_factory) -> dict:
    """The flags of a stage that goes on with 2."""
    folder = tmp_path_factory.mktemp("following")
    data = write_rows(folder / "second.json", rows("一加一", "2"))
    return {**first, "data_path": data, "resume_from_checkpoint": first["output_dir"]}


@pytest.fixture(scope="module")
def second(following, family, train, once) -> dict:
    def learned(folder: Path) -> dict:
        flags = {**following, "output_dir": str(folder / "second")}
        train(**flags)
        return flags

    return once(f"{family}-second", learned)


@both_families
def test_the_numbers_are_those_of_a_separate_evaluation(first, second):
    (measured,) = record.read(Path(second["output_dir"]))["held_out"]
    assert measured["then"] == record.read(Path(first["output_dir"]))["losses"]["best"]
    table, _ = dataset.load_rows(first["data_path"])
    held_out = dataset.split(table, first["val_set_size"], 42)[1]
    tokenizer = models.load_tokenizer(Path(first["base_model"]))
    encoded, _ = dataset.encode(held_out, tokenizer, Prompter("alpaca_short"), 256, False)

    def loss_of(stage: dict) -> float:
        model = models.load_base(Path(first["base_model"]), False, False, "auto", torch.device("cpu"))
        model = adapters.apply_adapter(model, Path(stage["output_dir"])).eval()
        with torch.no_grad():
            sums = [training.label_loss(model, collate([row], 0)) for row in encoded]
        return sum(loss.item() for loss, _ in sums) / sum(tokens for _, tokens in sums)

    rounding = {"rel": 1e-5, "abs": 1e-6}  # logits of some tens, in float32
    assert measured["loss"] == pytest.approx(loss_of(second), **rounding)
    assert measured["then"] == pytest.approx(loss_of(first), **rounding)
    assert measured["loss"] > measured["then"] + 0.5


def test_every_earlier_stage_is_measured_and_one_that_cannot_be_is_named(second, following, tmp_path, capsys):
    third = {**following, "resume_from_checkpoint": second["output_dir"], "output_dir": str(tmp_path / "third")}
    third["data_path"] = write_rows(tmp_path / "third.json", rows("你好", "很好😀"))
    data = Path(second["data_path"])
    before = data.read_bytes()
    data.write_bytes(before + b"\n")
    finetune.train(**{**third, "num_epochs": 1})
    data.write_bytes(before)
    measured = record.read(tmp_path / "third")["held_out"]
    assert [item["stage"] for item in measured] == ["first", "second"]
    assert measured[0]["loss"] > 0 and "is no longer what second was trained on" in measured[1]["why"]
    assert "what second has forgotten is not measured" in capsys.readouterr().err


def test_too_much_forgotten_fails_the_stage_until_the_limit_allows_it(following, second, tmp_path):
    out = tmp_path / "limited"
    flags = {**following, "output_dir": out, "max_forget": 0.3}
    given = {
        name: value for name, value in flags.items() if name not in ("lora_target_modules", "prompt_template_name")
    }
    log = tmp_path / "log"
    code = kills.until(kills.start(given, log, forked=True))
    error = log.read_text(encoding="utf-8")
    assert code == 4 and "Traceback" not in error
    assert "forgotten more than --max_forget 0.3: first " in error.splitlines()[-1]
    assert record.read(out)["status"] == "running"
    with pytest.raises(ModelFault, match="limited is not complete"):
        finetune.train(**{**flags, "resume_from_checkpoint": str(out), "output_dir": str(tmp_path / "next")})
    script = f". scripts/env.sh; OUTPUT_DIR={tmp_path} need_stage limited"
    done = subprocess.run(
        ["bash", "-c", script, "next.sh"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": "true"},
    )
    assert done.returncode == 4 and "limited is not complete" in done.stderr
    assert kills.until(kills.start({**given, "max_forget": 100}, log, forked=True)) == 0
    assert kills.result(out)["adapter"] == kills.result(Path(second["output_dir"]))["adapter"]


def test_a_limit_that_could_not_be_held_to_ends_the_run_before_the_base_loads(following, first, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load_base", lambda *_: pytest.fail("the base was loaded"))
    old = shutil.copytree(first["output_dir"], tmp_path / "old")
    flags = {**following, "output_dir": str(tmp_path / "new"), "resume_from_checkpoint": str(old), "max_forget": 0.3}

    def refused(message: str) -> None:
        with pytest.raises(DataFault, match=f"--max_forget: {message}"):
            finetune.train(**flags)

    run = record.read(old)
    losses = {"train": run["losses"]["train"]}
    lost = [{**run["data"][0], "path": str(tmp_path / "lost.json")}]
    changed = [{**run["data"][0], "sha256": "0" * 64}]
    for part, message in (
        ({"losses": losses}, "old: it held no rows out"),
        ({"data": lost}, r"old: .*lost\.json is gone"),
        ({"data": changed}, r"old: .*first\.json is no longer what old was trained on"),
    ):
        (old / record.NAME).write_text(json.dumps({**run, **part}))
        refused(message)
    (old / record.NAME).unlink()
    refused("what .*old has learned is not known: no run.json there tells")


def test_an_earlier_stage_that_is_gone_is_missed(following, first, second, tmp_path, capsys):
    """Unlike the stages before an adapter that came without a run.json, of which nothing was ever known."""
    gone, old = tmp_path / "gone", shutil.copytree(second["output_dir"], tmp_path / "old")
    run = record.read(old)
    for asked in ({"replay": 0.5}, {"max_forget": 100.0}):
        out = tmp_path / next(iter(asked))
        flags = {**following, "output_dir": str(out), "resume_from_checkpoint": str(old), "num_epochs": 1}
        (old / record.NAME).write_text(json.dumps({**run, "parent": {**run["parent"], "path": str(gone)}}))
        with pytest.raises(DataFault, match=f"--{next(iter(asked))}: what {gone} has learned is not known"):
            finetune.train(**{**flags, **asked})
        never = {**run["parent"], "path": str(gone), "run_sha256": None}
        (old / record.NAME).write_text(json.dumps({**run, "parent": never}))
        finetune.train(**{**flags, **asked})
        assert f"warning: what {gone} has learned is not known" in capsys.readouterr().err
        assert [item["stage"] for item in record.read(out)["held_out"]] == ["old"]


def test_a_complete_stage_is_held_to_a_limit_given_later_and_needs_no_files(following, second, tmp_path, capsys):
    old = shutil.copytree(second["output_dir"], tmp_path / "old")
    run = record.read(old)
    flags = {**following, "output_dir": str(old)}
    finetune.train(**{**flags, "max_forget": 100.0})
    assert "already complete" in capsys.readouterr().out
    with pytest.raises(ModelFault, match=r"forgotten more than --max_forget 0\.3: first "):
        finetune.train(**{**flags, "max_forget": 0.3})
    assert record.read(old) == run


def test_overwrite_moves_nothing_away_for_a_run_that_cannot_start(following, second, first, tmp_path):
    old = shutil.copytree(first["output_dir"], tmp_path / "old")
    run = record.read(old)
    (old / record.NAME).write_text(json.dumps({**run, "data": [{**run["data"][0], "path": str(tmp_path / "lost")}]}))
    out = shutil.copytree(second["output_dir"], tmp_path / "out")
    flags = {**following, "output_dir": str(out), "resume_from_checkpoint": str(old), "overwrite": True}
    with pytest.raises(DataFault, match=r"--replay: old: .*lost is gone"):
        finetune.train(**flags, replay=0.5)
    assert (out / "adapter_model.safetensors").exists() and not (tmp_path / "out.old-1").exists()


def test_a_loss_that_could_not_be_measured_after_all_fails_a_stage_with_a_limit():
    unknown = [{"stage": "first", "why": "first.json is gone"}]
    forgetting.refuse(unknown, INFINITY)
    with pytest.raises(DataFault, match=r"--max_forget: first: first\.json is gone"):
        forgetting.refuse(unknown, 0.3)


def test_held_out_rows_are_not_measured_with_other_texts_or_against_nothing(first, capsys):
    run = record.read(Path(first["output_dir"]))
    changed = {**run, "template": {**run["template"], "sha256": "0" * 64}}
    under_way = {**run, "losses": None, "status": "running"}
    stages = [{"name": "first", "run": changed}, {"name": "second", "run": under_way}]
    first, second = forgetting.measure(stages, lambda *_: pytest.fail("measured"), None)
    assert first["why"].startswith(f"it was trained with other texts: template alpaca_short: {'0' * 12} -> ")
    assert second["why"] == "it has not ended, and has no loss to compare with"


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_replay_forgets_less_and_is_recorded(following, second, tmp_path, share):
    finetune.train(**{**following, "output_dir": str(tmp_path / "replayed"), "replay": share})
    run, without = record.read(tmp_path / "replayed"), record.read(Path(second["output_dir"]))
    assert run["held_out"][0]["loss"] < without["held_out"][0]["loss"] - 0.01
    (drawn,) = run["rows"]["replayed"]
    assert drawn["stage"] == "first" and drawn["of"] == 16 and drawn["rows"] == round(share * 16)
    assert len(drawn["sha256"]) == 64 and run["settings"]["replay"] == share
    assert run["rows"]["training"]["rows"] == 16 + drawn["rows"] and not without["rows"]["replayed"]


def test_what_is_replayed_follows_from_the_seed_and_was_never_held_out(first):
    stages = [{"name": "first", "run": record.read(Path(first["output_dir"]))}]
    own, held_out = dataset.split(dataset.load_rows(first["data_path"])[0], 4, 42)
    once, drawn = forgetting.replayed(own, stages, 0.5, 42)
    assert forgetting.replayed(own, stages, 0.5, 42)[1] == drawn
    assert forgetting.replayed(own, stages, 0.5, 43)[1] != drawn
    many = dataset.choose(own, [0] * 1000)
    all_of_it, _ = forgetting.replayed(many, stages, 1.0, 42)
    assert len(once) == len(own) + 8 and len(all_of_it) == 1000 + 16
    assert once["instruction"][: len(own)] == own["instruction"][:]
    assert not set(all_of_it["instruction"]) & set(held_out["instruction"])


def test_a_replay_of_unknown_or_lost_rows_ends_the_run(following, first, tmp_path):
    flags = {**following, "output_dir": str(tmp_path / "new"), "replay": 0.5}
    old = tmp_path / "old"
    old.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (old / name).write_bytes((Path(first["output_dir"]) / name).read_bytes())
    with pytest.raises(DataFault, match=r"--replay: what .*old has learned is not known: no run.json"):
        finetune.train(**{**flags, "resume_from_checkpoint": str(old)})
    run = record.read(Path(first["output_dir"]))
    run["data"][0]["path"] = str(tmp_path / "lost.json")
    (old / record.NAME).write_text(json.dumps(run))
    with pytest.raises(DataFault, match=r"lost\.json is gone"):
        finetune.train(**{**flags, "resume_from_checkpoint": str(old)})
    assert not (tmp_path / "new" / "adapter_model.safetensors").exists()
