"""Several processes, started as a user starts them: torchrun and accelerate launch, two on one CPU, over gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import ROOT
from conftest import both_families, write_rows
from tiny_models import KNOWN, ROWS

import generate
from utils import checkpoint, record
from utils.errors import ModelFault
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


@both_families
def test_two_processes_learn_what_one_learns(family, train, flags, tmp_path):
    train(**flags)
    two = tmp_path / "two"
    script = {"llama": "finetune.py", "bloom": "finetune_bloom.py"}[family]
    code, out, err = end(start(TORCHRUN, script, {**flags, "output_dir": two}, DREAMERGPT_CACHE=str(tmp_path / "c")))
    assert code == 0, err
    assert out.count("training rows") == out.count("is complete") == 1
    assert "Traceback" not in err and "rror" not in err, err
    ours, theirs = metrics(tmp_path / "one"), metrics(two)
    assert len(ours) == len(theirs) >= 21 + 5
    for one, other in zip(ours, theirs):
        assert one.keys() == other.keys()
        assert all(one[key] == other[key] for key in ("step", "tokens", "tokens_read") if key in one)
        for key in ("loss", "eval_loss", "grad_norm"):
            assert other.get(key, 0) == pytest.approx(one.get(key, 0), rel=1e-4)
    weights = [read_weights(folder / "adapter_model.safetensors") for folder in (tmp_path / "one", two)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)
    assert record.read(two)["processes"] == 2


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
    assert err.count("SIGTERM at step") == 1 and "Traceback" not in err.split("torch/distributed")[0]

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


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_share_the_prompts_and_write_one_file(launcher, stage, tmp_path):
    prompts = [row["instruction"] for row in KNOWN]
    flags = {
        "base_model": stage["base_model"], "lora_weights": stage["output_dir"], "is_ui": False,
        "test_input_path": write_rows(tmp_path / "prompts.json", prompts), "output_path": str(tmp_path / "one.json"),
        "max_new_tokens": 12, "batch_tokens": 400,
    }  # fmt: skip
    generate.main(**flags)
    target = tmp_path / "two.json"
    way = TORCHRUN if launcher == "torchrun" else ACCELERATE
    code, out, err = end(start(way, "generate.py", {**flags, "output_path": target}))
    assert code == 0, err
    assert out.count(f"{len(prompts)} answers in") == 1
    one, two = (json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "one.json", target))
    assert [{**row, "seconds": 0} for row in one] == [{**row, "seconds": 0} for row in two]

    target.unlink()  # a run of two that was killed is gone on with by one
    journal = target.with_name("two.json.journal")
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:2]))
    generate.main(**{**flags, "output_path": str(target)})
    again = json.loads(target.read_text(encoding="utf-8"))
    assert [{**row, "seconds": 0} for row in again] == [{**row, "seconds": 0} for row in one]


ACCELERATE = (
    "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "scripts/accelerate/ddp.yaml"),
    "--num_processes", "2",
)  # fmt: skip
