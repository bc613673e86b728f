"""Processes that are killed, or asked to end, at any moment: the same command goes on and ends with the same bytes."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.bench import kills
from utils import training

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(scope="module")
def campaign(base, tmp_path_factory) -> kills.Campaign:
    """A run that nobody disturbed, and what it ended with."""
    folder = tmp_path_factory.mktemp("kills")
    return kills.Campaign(kills.small_run(folder, str(base)), folder, random.Random(0), forked=True)


@pytest.fixture
def flags(campaign, tmp_path) -> dict:
    return {**campaign.flags, "output_dir": tmp_path / "out"}


def slow_evaluation():
    """In the child: evaluations take long enough to be met."""
    plain = training.label_loss

    def label_loss(model, inputs, head):
        if not model.training:
            time.sleep(0.02)
        return plain(model, inputs, head)

    training.label_loss = label_loss


def slow_saving():
    """In the child: a checkpoint takes long enough for two signals."""
    plain = training.StageTrainer._write_state

    def write_state(self, *given):
        plain(self, *given)
        time.sleep(0.3)

    training.StageTrainer._write_state = write_state


def ignore_hangups():
    """In the child: what nohup does."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def logged(out: Path, count: int, key: str = "loss") -> Callable[[], bool]:
    """Whether metrics.jsonl holds so many lines of steps (or, key eval_loss, of evaluations)."""
    metrics = out / "metrics.jsonl"
    return lambda: metrics.exists() and metrics.read_text(encoding="utf-8").count(f'"{key}"') >= count


def checkpoints(out: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in out.glob("checkpoint-*"))


def run(flags: dict, now: Callable[[], bool], number: int, before=kills.nothing, forked=True) -> tuple[int, str]:
    """Start the run, send it the signal as soon as now(); (exit code, what it wrote to the terminal)."""
    log = flags["output_dir"].with_suffix(".log")
    log.unlink(missing_ok=True)
    code = kills.until(kills.start(flags, log, forked, before), now, number)
    return code, log.read_text(encoding="utf-8")


def finish(flags: dict, campaign: kills.Campaign) -> None:
    """The same command once more: the bytes of the undisturbed run."""
    code, log = run(flags, lambda: False, signal.SIGKILL)
    assert code == 0, log
    assert kills.result(flags["output_dir"]) == campaign.undisturbed


def test_runs_killed_anywhere_end_with_the_same_bytes(campaign):
    campaign.kill(5, forked=False)
    campaign.kill(30, forked=True)
    while campaign.phases.total() < 80 and not all(campaign.phases[name] for name in kills.PHASES):
        campaign.kill(5, forked=campaign.phases["import"] > 0)  # chance has left a phase out
    print(campaign.phases)
    assert all(campaign.phases[name] for name in kills.PHASES), campaign.phases


def test_a_whole_command_line_refuses_a_second_one_and_ends_at_a_signal(flags, campaign, tmp_path):
    out = flags["output_dir"]
    endless = {**flags, "num_epochs": 1000}
    second = []

    def now() -> bool:
        if not second and logged(out, 2)():
            second.append(run({**endless, "output_dir": out}, lambda: False, signal.SIGKILL))
        return bool(second)

    first = kills.start(endless, tmp_path / "first.log", forked=False)
    assert kills.until(first, now, signal.SIGTERM) == 143
    code, error = second[0]
    assert code == 5 and f"--output_dir: another process is writing {out}" in error and "Traceback" not in error
    error = (tmp_path / "first.log").read_text(encoding="utf-8")
    assert "SIGTERM at step" in error and "Traceback" not in error
    assert checkpoints(out) and not (out / "adapter_model.safetensors").exists()
    metrics = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in metrics if '"loss"' in line] == [*range(1, checkpoints(out)[-1] + 1)]
    code, error = run(endless, logged(out, len(metrics) + 5), signal.SIGKILL)
    assert code is None and f"goes on: {out / 'checkpoint-'}" in error  # the dead one's lock is none


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_ends_the_step_with_a_checkpoint(flags, campaign, number):
    out = flags["output_dir"]
    code, error = run(flags, logged(out, 2), number)
    assert code == 128 + number
    assert f"{number.name} at step" in error and "Traceback" not in error
    assert checkpoints(out)[-1] < 10 and not (out / "adapter_model.safetensors").exists()
    finish(flags, campaign)


@pytest.mark.parametrize(
    "evaluation", [1, 3, 6], ids=["before the first step", "in the middle", "behind the last step"]
)
def test_a_signal_during_an_evaluation_ends_it_and_the_next_run_makes_it_up(flags, campaign, evaluation):
    out, steps = flags["output_dir"], 2 * (evaluation - 1)
    for _ in range(2):  # the second time while the next run makes it up
        since = time.time_ns()
        begin = []

        def now(since=since, begin=begin) -> bool:
            metrics = out / "metrics.jsonl"
            if not begin and metrics.exists() and metrics.stat().st_mtime_ns > since and logged(out, steps)():
                begin.append(time.monotonic())
            return bool(begin) and time.monotonic() > begin[0] + 0.15

        code, error = run(flags, now, signal.SIGTERM, slow_evaluation)
        assert code == 143 and f"SIGTERM at step {steps}" in error and "Traceback" not in error
        assert logged(out, evaluation - 1, "eval_loss")() and not logged(out, evaluation, "eval_loss")()
        assert checkpoints(out)[-1:] == [steps][: bool(steps)]
    finish(flags, campaign)


@pytest.mark.parametrize("is_final", [False, True], ids=["checkpoint", "last checkpoint"])
def test_a_second_signal_while_saving_does_no_harm(flags, campaign, is_final):
    out = flags["output_dir"]
    seen = []

    def now() -> bool:
        if not seen and (out / f".staging-{10 if is_final else 4}").exists():
            seen.append(child)
            os.kill(child.pid, signal.SIGINT)
            time.sleep(0.05)
        return bool(seen)

    child = kills.start(flags, out.with_suffix(".log"), forked=True, before=slow_saving)
    code = kills.until(child, now, signal.SIGTERM)
    error = out.with_suffix(".log").read_text(encoding="utf-8")
    assert code == 143 and "SIGTERM at step" in error and "Traceback" not in error
    assert checkpoints(out)[-1] == (10 if is_final else 5) and not (out / "adapter_model.safetensors").exists()
    finish(flags, campaign)


def test_signals_at_random_moments(flags, campaign):
    draw = random.Random(1)
    for _ in range(8):
        number = draw.choice(SIGNALS)
        code, error = run(flags, kills.after(draw.uniform(0, campaign.seconds[True])), number)
        assert code in (0, 128 + number, -number), error  # -N: outside the training there is nothing to save
        assert "Traceback" not in error
    finish(flags, campaign)


def test_an_ignored_signal_stays_ignored(flags, campaign):
    code, log = run(flags, logged(flags["output_dir"], 2), signal.SIGHUP, ignore_hangups)
    assert code == 0, log
    assert kills.result(flags["output_dir"]) == campaign.undisturbed


@pytest.mark.parametrize("family", ["bloom"], indirect=True)
def test_a_bloom_killed_anywhere_ends_with_the_same_bytes(base, tmp_path):
    flags = kills.small_run(tmp_path, str(base))
    bloom = kills.Campaign(flags, tmp_path, random.Random(2), forked=True, script="finetune_bloom.py")
    bloom.kill(3, forked=True)
    assert bloom.phases.total() == 3
