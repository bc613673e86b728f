"""Numbers that go wrong: the run stops at that step, its last good checkpoint stays, and it goes on once the cause is
gone."""

import json
from pathlib import Path

import pytest
import torch

import finetune
from scripts.bench import kills
from utils import checkpoint, training
from utils.errors import ModelFault

NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture
def spoil(monkeypatch):
    """spoil(how, step): in that step the loss goes through how(loss, model)."""
    plain = training.StageTrainer.compute_loss

    def spoil(how, step: int):
        def compute_loss(self, model, inputs, **kwargs):
            loss = plain(self, model, inputs, **kwargs)
            return how(loss, model) if self.state.global_step + 1 == step else loss

        monkeypatch.setattr(training.StageTrainer, "compute_loss", compute_loss)

    return spoil


def _bad_gradient(loss: torch.Tensor, model) -> torch.Tensor:
    """The loss as it is, with a gradient that is no number."""
    weight = next(tensor for tensor in model.parameters() if tensor.requires_grad)
    return loss + (weight * 0).abs().sqrt().sum()


WAYS = {
    "a loss that is no number": (lambda loss, _: loss * NAN, "the loss is nan"),
    "an infinite loss": (lambda loss, _: loss * INFINITY, "the loss is inf"),
    "a gradient that is no number": (_bad_gradient, "the gradient's norm is nan"),
}


def check_stopped(flags: dict, step: int) -> None:
    """Nothing of the spoiled step is kept, the checkpoints before it are whole."""
    out = Path(flags["output_dir"])
    kept = checkpoint.numbered(out)
    assert [folder.name for folder in kept] == [f"checkpoint-{n}" for n in range(step - 1, max(step - 3, 0), -1)]
    assert all(checkpoint.checkpoint_problem(folder) is None for folder in kept)
    assert not (out / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(("how", "message"), WAYS.values(), ids=WAYS)
def test_a_spoiled_step_stops_the_run_there(quick, spoil, how, message):
    for step in (1, 3, 3):  # the same command meets the same end, and loses nothing by it
        spoil(how, step)
        with pytest.raises(ModelFault, match=f"{message} at step {step}: lower --learning_rate"):
            finetune.train(**quick)
        check_stopped(quick, step)


def test_a_run_goes_on_once_the_cause_is_gone(quick, tmp_path, spoil, monkeypatch):
    spoil(WAYS["an infinite loss"][0], 3)
    with pytest.raises(ModelFault):
        finetune.train(**quick)
    monkeypatch.undo()
    finetune.train(**quick)
    finetune.train(**{**quick, "output_dir": str(tmp_path / "whole")})
    assert kills.result(tmp_path / "out") == kills.result(tmp_path / "whole")


def test_a_loss_of_exactly_zero_stops_the_first_step_only(quick, spoil, monkeypatch):
    spoil(lambda loss, _: loss * 0, 1)
    with pytest.raises(ModelFault, match="the loss is exactly 0 at the first step"):
        finetune.train(**quick)
    check_stopped(quick, 1)
    spoil(lambda loss, _: loss * 0, 3)
    finetune.train(**quick)


def test_a_validation_loss_that_is_no_number_stops_the_run(quick, monkeypatch):
    plain = training.StageTrainer.mean_loss

    def mean_loss(self, dataset, title="validation"):
        return NAN if self.state.global_step == 2 else plain(self, dataset, title)

    monkeypatch.setattr(training.StageTrainer, "mean_loss", mean_loss)
    with pytest.raises(ModelFault, match="the validation loss is nan at step 2"):
        finetune.train(**quick)
    check_stopped(quick, 2)


def test_a_base_that_is_broken_is_not_said_to_need_another_rate(quick, monkeypatch):
    monkeypatch.setattr(training.StageTrainer, "mean_loss", lambda *_: NAN)
    with pytest.raises(ModelFault, match="nan at step 0: the base model is broken, or overflows"):
        finetune.train(**quick)


def test_a_step_without_a_supervised_token_stops_the_run(quick, monkeypatch):
    plain = training.collate_packed
    calls = []

    def collate(rows):
        batch = plain(rows)
        calls.append(torch.is_grad_enabled())  # not in an evaluation
        if calls[-1] and calls.count(True) > 4:  # from the third step on
            batch["labels"][:] = training.IGNORED
        return batch

    monkeypatch.setattr(training, "collate_packed", collate)
    with pytest.raises(ModelFault, match="step 3 has no supervised token"):
        finetune.train(**quick)
    check_stopped(quick, 3)
    lines = (Path(quick["output_dir"]) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if '"loss"' in line] == [1, 2]
