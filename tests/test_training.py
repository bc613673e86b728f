"""The mathematics of a step: order of rows, loss over answer tokens, steps of a run."""

import contextlib
import inspect
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch.nn import functional

import finetune
from utils import hooks, models, record, training
from utils.batching import StepOrder, collate
from utils.encode import IGNORED
from utils.errors import EnvironmentFault

ROOT = Path(__file__).resolve().parent.parent


def batch_of(lengths: list[int]) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in lengths:
        ids = torch.randint(3, 200, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED] * (length // 2) + ids[length // 2 :]})
    return rows


@pytest.fixture
def model(base):
    torch.manual_seed(1)
    model = models.add_lora(
        models.load_base(base, False, False, "auto", torch.device("cpu")), 4, 8, 0.0, ("q_proj", "v_proj")
    )
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.1)
    return model


def test_the_loss_is_the_plain_one_over_the_supervised_tokens(model):
    batch = collate(batch_of([9, 5, 12]), pad_token_id=0)
    loss, tokens = training.label_loss(model, batch)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    plain = functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    assert tokens == int((batch["labels"][:, 1:] != IGNORED).sum())
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)


def test_micro_batches_add_up_to_the_whole_batch(model):
    rows = batch_of([9, 5, 12, 7])

    def gradients(chunks: list[list[dict]]) -> torch.Tensor:
        model.zero_grad()
        total = sum(training.label_loss(model, collate(chunk, 0))[1] for chunk in chunks)
        for chunk in chunks:
            (training.label_loss(model, collate(chunk, 0))[0] / total).backward()
        return torch.cat([tensor.grad.flatten() for tensor in model.parameters() if tensor.grad is not None])

    whole = gradients([rows])
    torch.testing.assert_close(gradients([rows[:1], rows[1:]]), whole, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(gradients([rows[2:], rows[:2]]), whole, rtol=1e-4, atol=1e-7)


def test_padding_is_neither_seen_nor_learned():
    batch = collate([{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [8]}], 0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]


@pytest.mark.parametrize("group", [False, True])
def test_an_epoch_holds_every_row_once_and_follows_the_seed(group):
    lengths = [(index * 37) % 101 + 1 for index in range(1003)]
    order = list(StepOrder(lengths, 8, 42, group))
    assert sorted(order) == list(range(1003))
    assert order == list(StepOrder(lengths, 8, 42, group)) != list(StepOrder(lengths, 8, 43, group))
    later = StepOrder(lengths, 8, 42, group)
    later.set_epoch(1)
    assert list(later) != order
    steps = [[lengths[row] for row in order[start : start + 8]] for start in range(0, 1003, 8)]
    assert all(step == sorted(step, reverse=True) for step in steps)
    assert (sum(max(step) - min(step) for step in steps) / len(steps) < 20) == group


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "expected"),
    [
        (1_000_000, 128, 3, training.Plan(23439, 100, 200)),
        (100, 128, 3, training.Plan(3, 0, 1)),
        (1000, 100, 3, training.Plan(30, 3, 6)),
    ],
)
def test_warm_up_and_evaluation_shrink_with_the_run(rows, batch, epochs, expected):
    assert training.plan(rows, batch, epochs) == expected


def test_a_run_is_told_in_words():
    assert str(training.Plan(30, 3, 6)) == "steps: 30, warm-up 3, an evaluation and a checkpoint every 6"
    losses = {"train": 2.0, "start": 3.14159, "best": 2.71828, "best_step": 6}
    assert training.summary(losses) == "validation loss 3.142 -> 2.718 (step 6)"
    assert training.summary({"train": 2.0}) == "training loss 2.000, nothing validated"


def test_alpaca_loras_wandb_log_model_true_is_what_wandb_calls_end(monkeypatch):
    seen = {}

    def arguments(**given):
        seen.update(given)
        raise InterruptedError

    monkeypatch.setattr(training, "TrainingArguments", arguments)
    for name in ("WANDB_PROJECT", "WANDB_LOG_MODEL"):
        monkeypatch.setenv(name, "")
    flags = {name: p.default for name, p in inspect.signature(finetune.train).parameters.items()}
    flags |= {"wandb_project": "p", "wandb_log_model": "true"}
    with pytest.raises(InterruptedError):
        training.build(None, [], [], training.Plan(1, 0, 1), flags, 0, torch.device("cpu"))
    assert (os.environ["WANDB_PROJECT"], os.environ["WANDB_LOG_MODEL"]) == ("p", "end")
    assert seen["report_to"] == ["wandb"]


@pytest.mark.parametrize(
    ("device", "bits", "expected"),
    [
        ("cuda", 4, "paged_adamw_32bit"),
        ("cuda", 8, "adamw_torch_fused"),
        ("cuda", 16, "adamw_torch_fused"),
        ("cpu", 4, "adamw_torch_fused"),
    ],
)
def test_a_4_bit_base_on_a_gpu_has_the_paged_optimizer(device, bits, expected):
    name = training.optimizer({"load_8bit": bits == 8, "load_4bit": bits == 4}, torch.device(device))
    assert name == expected
    settings = training.TrainingArguments(optim=name, use_cpu=True)
    kind, arguments = training.Trainer.get_optimizer_cls_and_kwargs(settings)
    assert kind.__name__ == "AdamW" and arguments.get("is_paged", False) == name.startswith("paged")
    assert arguments.get("optim_bits", 32) == 32


@pytest.mark.parametrize("module, fault", [("wandb.errors.errors", EnvironmentFault), ("builtins", RuntimeError)])
def test_a_wandb_without_a_login_is_told_in_one_line(module, fault):
    error = type("UsageError", (RuntimeError,), {"__module__": module})
    trainer = MagicMock()
    trainer.cadence.watching.return_value = contextlib.nullcontext()
    trainer.train.side_effect = error("No API key configured. Use `wandb login` to log in.\nMore")
    with pytest.raises(fault, match="No API key configured"):
        training.run(trainer, None)
    assert trainer.bar.close.called


def test_a_second_gpu_in_sight_changes_no_step(quick, monkeypatch):
    class TwoGpus(training.TrainingArguments):
        def __post_init__(self):
            super().__post_init__()
            assert self.device.type == "cpu"  # asking for it counts the GPUs
            self._n_gpu = 2

    monkeypatch.setattr(training, "TrainingArguments", TwoGpus)
    finetune.train(**quick)
    assert record.read(quick["output_dir"])["steps"] == 3


def test_the_clock_of_a_step_runs_until_its_loss_is_a_number(tmp_path, monkeypatch):
    """A GPU is still at work when the step ends for Python."""
    clock = [1.0]
    monkeypatch.setattr(hooks, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    metrics, state = hooks.Metrics(tmp_path), SimpleNamespace(global_step=1)
    metrics.trainer = SimpleNamespace(step_tokens=3, step_tokens_read=7)
    metrics.on_step_begin(None, state, None)
    clock[0] = 1.5
    metrics.on_step_end(None, state, None)
    clock[0] = 4.5
    metrics.on_log(SimpleNamespace(fp16=False), state, None, {"loss": 2.0})
    assert (json.loads(metrics.path.read_text())["seconds"], metrics.tokens, metrics.seconds) == (3.5, 7, 3.5)


def test_paths_are_relative_to_where_the_user_stands(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finetune.train(**{**quick, "data_path": "rows.json", "output_dir": "here/out"})
    assert (tmp_path / "here/out/adapter_model.safetensors").exists()
    assert os.getcwd() == str(tmp_path)


def test_a_log_has_a_line_a_checkpoint_and_no_bars(quick, capfd):
    """What nohup and tee write: no terminal, so nothing that draws itself over and over."""
    finetune.train(**quick)
    out, err = capfd.readouterr()
    steps = re.findall(r"^step (\d) of 3: loss=\d\.\d{3}, eval_loss=\d\.\d{3}, tokens_per_s=\d+$", out, re.M)
    assert steps == ["1", "2", "3"]
    assert "\r" not in err and "it/s" not in err and "%|" not in err
