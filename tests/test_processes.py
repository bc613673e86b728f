"""Several processes, started as a user starts them: torchrun and accelerate launch, two on one CPU, over gloo."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import MAIN, ROOT, command, ends, refusal
from conftest import both_families, write_rows
from tiny_models import KNOWN, ROWS

import generate
from utils import checkpoint, cli, fast, forgetting, ranks, record, runtime
from utils.batching import FILLER, StepOrder, collate, collate_packed, tokens_of
from utils.encode import IGNORED
from utils.errors import Interrupted, ModelFault
from utils.weights import read_weights

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def start(launcher: tuple[str, ...], script: str, flags: dict, **environment: str) -> subprocess.Popen:
    values = (f"--{name}={','.join(value) if isinstance(value, tuple) else value}" for name, value in flags.items())
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / script), *values],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def accelerate(name: str) -> tuple[str, ...]:
    config = str(ROOT / f"scripts/accelerate/{name}.yaml")
    return ("-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", "2")


@pytest.fixture
def flags(base, tmp_path) -> dict:
    """21 rows in steps of 8: each epoch ends with a step of 5, of which the second process would have one row."""
    return {
        "base_model": str(base),
        "data_path": write_rows(tmp_path / "rows.json", [*ROWS, *KNOWN][:23]),
        "output_dir": str(tmp_path / "one"),
        "batch_size": 8,
        "micro_batch_size": 2,
        "num_epochs": 7,
        "val_set_size": 2,
        "lora_r": 4,
        "lora_dropout": 0.0,
        "load_8bit": False,
        "learning_rate": 1e-2,
        "train_on_inputs": False,
    }


def same_losses(one: Path, other: Path) -> None:
    """The same steps, evaluations and counts of tokens; losses within 1e-4."""
    ours, theirs = metrics(one), metrics(other)
    assert len(ours) == len(theirs)
    for mine, yours in zip(ours, theirs):
        assert mine.keys() == yours.keys()
        assert all(mine[key] == yours[key] for key in ("step", "tokens", "tokens_read") if key in mine)
        for key in ("loss", "eval_loss", "grad_norm"):
            assert yours.get(key, 0) == pytest.approx(mine.get(key, 0), rel=1e-4)


@both_families
def test_two_processes_learn_what_one_learns(family, train, flags, tmp_path):
    train(**flags)
    one, two = tmp_path / "one", tmp_path / "two"
    launcher, script = {"llama": (TORCHRUN, "finetune.py"), "bloom": (accelerate("ddp"), "finetune_bloom.py")}[family]
    code, out, err = end(start(launcher, script, {**flags, "output_dir": two}, DREAMERGPT_CACHE=str(tmp_path / "c")))
    assert code == 0, err
    assert out.count("training rows") == out.count("is complete") == 1
    assert "Traceback" not in err and "rror" not in err
    same_losses(one, two)
    assert len(metrics(two)) >= 21 + 5
    weights = [read_weights(folder / "adapter_model.safetensors") for folder in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)
    assert record.read(two)["processes"] == 2


def test_a_base_in_4_bits_cut_into_pieces_learns_what_a_whole_one_learns(train, flags, tmp_path):
    flags = {**flags, "load_4bit": True, "num_epochs": 2}
    train(**flags)
    code, _, err = end(start(accelerate("fsdp_qlora"), "finetune.py", {**flags, "output_dir": tmp_path / "two"}))
    assert code == 0, err
    losses = [[line["loss"] for line in metrics(tmp_path / name) if "loss" in line] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)  # products in bfloat16, of other micro batches


def test_a_killed_rank_ends_the_run_and_the_same_command_goes_on(flags, tmp_path):
    flags = {**flags, "num_epochs": 12, "lora_dropout": 0.1}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    code, _, err = end(start(TORCHRUN, "finetune.py", {**flags, "output_dir": undisturbed}))
    assert code == 0, err

    process = start(TORCHRUN, "finetune.py", {**flags, "output_dir": killed})
    wait(lambda: checkpoint.numbered(killed), process)
    os.kill(pid_of_rank(process.pid, 1), signal.SIGKILL)
    begin = time.monotonic()
    code, _, err = end(process)
    assert code != 0 and time.monotonic() - begin < 60
    assert "rank      : 1" in err and "Signal 9" in err
    assert not (killed / "adapter_model.safetensors").exists()

    with pytest.raises(ModelFault, match="processes: 2 -> 1"):
        checkpoint.starting_point(str(killed), {**record.read(killed), "processes": 1}, overwrite=False)

    process = start(TORCHRUN, "finetune.py", {**flags, "output_dir": killed})
    before = len(checkpoint.numbered(killed))
    wait(lambda: len(metrics(killed)) > 10 and before, process)
    process.send_signal(signal.SIGTERM)
    code, out, err = end(process)
    assert code != 0 and "goes on" in out
    assert err.count("SIGTERM at step") == 1 and "TypeError" not in err

    code, out, err = end(start(TORCHRUN, "finetune.py", {**flags, "output_dir": killed}))
    assert code == 0, err
    assert "goes on" in out
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    plain = [[{**line, "seconds": 0} for line in metrics(folder)] for folder in (killed, undisturbed)]
    assert plain[0] == plain[1]


def wait(event, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while not event():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pid_of_rank(launcher: int, rank: int) -> int:
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"no rank {rank}")


def test_two_processes_share_the_prompts_and_write_one_file(stage, tmp_path):
    prompts = [row["instruction"] for row in KNOWN]
    flags = {
        "base_model": stage["base_model"], "lora_weights": stage["output_dir"], "is_ui": False,
        "test_input_path": write_rows(tmp_path / "prompts.json", prompts), "output_path": str(tmp_path / "one.json"),
        "max_new_tokens": 12, "batch_tokens": 400,
    }  # fmt: skip
    generate.main(**flags)
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    code, out, err = end(start(accelerate("ddp"), "generate.py", {**flags, "output_path": two}))
    assert code == 0, err
    assert out.count(f"{len(prompts)} answers in") == 1
    assert answers(two) == answers(one)

    two.unlink()  # a run of two that was killed is gone on with by one
    journal = two.with_name("two.json.journal")
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    generate.main(**{**flags, "output_path": str(two)})
    assert answers(two) == answers(one)


def answers(path: Path) -> list[dict]:
    return [{**row, "seconds": 0} for row in json.loads(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    ("processes", "batch", "micro", "said"),
    [
        (3, 128, 4, "--batch_size: 128 cannot be spread evenly over 3 processes (nearest: 132)"),
        (4, 16, 8, "--micro_batch_size: 8 is more than --batch_size 16 over 4 processes"),
        (2, 24, 5, "--micro_batch_size: 5 does not divide --batch_size 24 over 2 processes (nearest: 4)"),
    ],
)
def test_a_batch_that_the_processes_cannot_share_names_the_nearest(
    processes, batch, micro, said, nothing_starts, monkeypatch, capsys
):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    line = command("finetune.py", f"--batch_size={batch}", f"--micro_batch_size={micro}", "--val_set_size=0")
    assert said in refusal("finetune.py", line, monkeypatch, capsys)


def test_what_runs_in_one_process_says_so(nothing_starts, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for script in ("merge_lora.py", "generate.py"):
        assert "without a launcher" in refusal(script, command(script), monkeypatch, capsys)


def test_a_process_that_is_not_the_first_is_silent_about_what_the_first_one_says(nothing_starts, monkeypatch, capsys):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    wrong = command("finetune.py", "--val_set_size=-1")
    waited = []

    def launcher_ends_it(seconds):
        waited.append(seconds)
        sys.exit(143)

    with monkeypatch.context() as patch:  # had it ended first, the launcher would end the first one before it speaks
        patch.setattr(cli.time, "sleep", launcher_ends_it)
        assert ends(MAIN["finetune.py"], wrong, monkeypatch, capsys, several=True) == (143, "", "")
        monkeypatch.setattr(ranks, "have_met", lambda: True)
        ends(MAIN["finetune.py"], wrong, monkeypatch, capsys, several=True)
    assert waited == [cli.SURELY, cli.MAYBE]
    monkeypatch.setattr(cli, "MAYBE", 0)  # nobody has ended it: the first one had no such error
    code, _, err = ends(MAIN["finetune.py"], wrong, monkeypatch, capsys, several=True)
    assert code == 2 and "error on rank 1: --val_set_size" in err
    monkeypatch.setenv("LOCAL_RANK", "0")  # the first of another machine
    code, out, err = ends(MAIN["finetune.py"], wrong, monkeypatch, capsys, several=True)
    assert (code, out) == (2, "") and "error on rank 1: --val_set_size" in err


def test_what_a_launcher_asks_past_the_flags_is_refused(nothing_starts, monkeypatch, capsys):
    for variable, value, said in (
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed_precision: bf16"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo_backend: INDUCTOR"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "deepspeed: true"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            line = command("finetune.py", "--val_set_size=0")
            assert said in refusal("finetune.py", line, monkeypatch, capsys)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--gpu_id" in refusal("generate.py", command("batch", "--gpu_id=0"), monkeypatch, capsys)


def test_a_signals_end_is_the_same_behind_a_pickle():
    (again,) = pickle.loads(pickle.dumps([Interrupted(signal.SIGTERM, "SIGTERM at step 4")]))
    assert (again.exit_code, str(again)) == (143, "SIGTERM at step 4")


def test_machines_with_other_data_or_flags_are_refused():
    run = {"data": [{"sha256": "a" * 64}], "processes": 2, "settings": {"micro_batch_size": 4}}
    run["settings"] |= dict.fromkeys(record.MATHEMATICAL)
    record.refuse_unlike([run, run])
    for other, said in (
        ({"data": [{"sha256": "b" * 64}]}, "data: "),
        ({"settings": {**run["settings"], "micro_batch_size": 2}}, "--micro_batch_size: 4 -> 2"),
    ):
        with pytest.raises(ModelFault, match=f"rank 1 .*{said}"):
            record.refuse_unlike([run, {**run, **other}])


def test_what_one_process_cannot_measure_none_measures(monkeypatch, capsys):
    monkeypatch.setattr(runtime, "gathered", lambda value: [value, "rows.json is gone"])
    monkeypatch.setattr(forgetting, "_rows_of", lambda stage: (None, None))
    monkeypatch.setattr(forgetting.dataset, "encode", lambda *_: (None, None))
    settings = {"prompt_template_name": "alpaca", "train_on_inputs": True, "cutoff_len": 9}
    run = {"losses": {"best": 1.0}, "settings": settings}
    measured = forgetting.measure([{"stage": "a", "name": "a", "run": run}], pytest.fail, None)
    assert measured == [{"stage": "a", "why": "rows.json is gone"}]


def test_the_last_step_is_filled_up_so_that_all_processes_have_as_many_rows():
    lengths = [5, 9, 7, 3, 8, 6, 4]
    alone, shared = (StepOrder(lengths, 4, 1, False, multiple) for multiple in (1, 4))
    assert list(shared) == [*alone, len(lengths)] and len(shared) == 8
    filler = {key: FILLER[key] for key in ("input_ids", "labels")}
    row = {"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}
    assert tokens_of(collate([row, filler], 0)) == tokens_of(collate_packed([filler, row])) == 3


def test_without_labels_a_batch_has_a_loss_of_zero_and_gradients_of_zero():
    hidden = torch.randn(0, 4, requires_grad=True)
    loss = fast.summed_loss(hidden, torch.nn.Linear(4, 9), torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and hidden.grad.shape == (0, 4)
