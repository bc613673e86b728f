"""Training one stage: the Trainer with our loss over answer tokens, and what happens around its steps."""

import contextlib
import json
import math
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import Trainer, TrainerControl, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from utils import adapters, checkpoint, fast, hooks, neftune, ranks, runtime, sharding
from utils.batching import FILLER, StepOrder, collate, collate_packed, parts_of, tokens_of
from utils.encode import IGNORED
from utils.errors import EnvironmentFault, Interrupted, ModelFault
from utils.files import write_json

BEST, BEST_WEIGHTS = "best.json", "best_model.safetensors"
Count: TypeAlias = "torch.Tensor | int | None"  # of supervised tokens


@dataclass
class Plan:
    """Steps of a run: total, warm-up, and the steps between two evaluations (and checkpoints)."""

    total: int
    warmup: int
    every: int

    def __str__(self) -> str:
        return f"steps: {self.total}, warm-up {self.warmup}, an evaluation and a checkpoint every {self.every}"


def plan(rows: int, batch_size: int, num_epochs: int) -> Plan:
    """The ancestor's 100 warm-up steps and evaluation each 200, shrunk so that a short run has them too.

    A tenth of the steps is warm-up, and there are at least five evaluations where there are five steps.
    """
    total = math.ceil(rows / batch_size) * num_epochs
    return Plan(total, warmup=min(100, total // 10), every=max(1, min(200, total // 5)))


def label_loss(
    model: nn.Module, inputs: dict[str, torch.Tensor], head: nn.Linear | None = None
) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy over the supervised tokens of a batch, and their number.

    inputs: labels (rows, length) and what the model takes. Logits are computed in front of supervised tokens only,
    (tokens, vocabulary), which is the larger part of the memory saved; with a head that fast.prepare took, in parts.
    """
    targets = functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORED)
    wanted = targets != IGNORED
    taken = {name: value for name, value in inputs.items() if name != "labels"}
    logits = model(**taken, logits_to_keep=wanted, use_cache=False).logits
    logits, targets = logits.reshape(-1, logits.shape[-1]), targets[wanted]
    if head is not None:
        return fast.summed_loss(logits, head, targets), len(targets)
    return functional.cross_entropy(logits.float(), targets, reduction="sum"), len(targets)


class StageTrainer(Trainer):
    """The Trainer with our order of rows, our loss, a validation loss that is a true mean over answer tokens, and
    checkpoints that hold all of the run, the best adapter included.

    head: of a model that fast.prepare took it from.
    best: {"step", "loss"} of the lowest validation loss so far; best_weights: its adapter, on the CPU.
    """

    control: TrainerControl

    def __init__(self, *args: Any, group_by_length: bool, head: nn.Linear | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.group_by_length, self.head = group_by_length, head
        # Where the base is sharded, every process must go through it equally often.
        is_whole = head is None or ranks.shards_base()
        self.part_tokens = sys.maxsize if is_whole else fast.part_tokens(self.args.device)
        self.model_accepts_loss_kwargs = True  # the Trainer counts the step's supervised tokens and scales nothing
        self.best: dict | None = None
        self.best_weights: adapters.Weights = {}

    def get_train_dataloader(self) -> DataLoader:
        """Micro batches, of which each process takes every n-th: together they are those of a single process."""
        micro, lengths = self.args.train_batch_size, self.train_dataset["length"][:]
        at_once = micro * ranks.world_size()
        order = StepOrder(
            lengths, at_once * self.args.gradient_accumulation_steps, self.args.seed, self.group_by_length, at_once
        )
        self.cadence.order = order
        rows = self.train_dataset.add_item(FILLER) if order.fillers else self.train_dataset
        return self._get_dataloader(rows, "training", micro, lambda _: order, is_training=True)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: object) -> tuple[list[dict], Count]:
        """A step's micro batches and the number of its supervised tokens (kept for the metrics).

        Raises ModelFault for a step that has none: there would be nothing to learn, or a division by zero.
        """
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.step_tokens = int(tokens) if tokens is not None else 0
        self.step_tokens_read = sum(runtime.gathered(sum(map(tokens_of, batches))))
        if not self.step_tokens:
            raise ModelFault(f"step {self.state.global_step + 1} has no supervised token")
        return batches, tokens

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: Count = None) -> torch.Tensor:
        """Forward and backward through a micro batch, on the fast path in parts: their gradients add up to the same.

        Several processes add theirs up behind the last part, however many each of them has.
        """
        *parts, last = parts_of(inputs, self.part_tokens)
        with self.accelerator.no_sync(model):
            loss = sum(super(StageTrainer, self).training_step(model, part, num_items_in_batch) for part in parts)
        return loss + super().training_step(model, last, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Count = None
    ) -> torch.Tensor | tuple[torch.Tensor, dict]:
        """The batch's share of the step's mean loss: summed over its tokens, divided by the tokens of the step. Of
        several processes the gradients are averaged, hence the factor."""
        loss, tokens = label_loss(model, inputs, self.head)
        loss = loss * ranks.world_size() / (tokens if num_items_in_batch is None else num_items_in_batch)
        return (loss, {}) if return_outputs else loss

    def mean_loss(self, dataset: Any, title: str = "validation") -> float:
        """Mean negative log-likelihood (nats) over all supervised tokens of a data set, in batches of like length, of
        which each process takes every n-th.

        Raises hooks.Stopped when a signal asks for the end.
        """
        model, size = self.model_wrapped, self.args.per_device_eval_batch_size
        model.eval()
        lengths = dataset["length"][:]
        order = sorted(range(len(lengths)), key=lambda index: lengths[index])
        total = tokens = 0
        with torch.no_grad():
            for begin in tqdm(range(0, len(order), size * ranks.world_size()), desc=title, leave=False, disable=None):
                if self.cadence.received is not None and not ranks.shards_base():
                    break
                start = begin + size * ranks.rank()
                rows = [dataset[index] for index in order[start : start + size]] or [FILLER]
                for part in parts_of(self._prepare_inputs(self.data_collator(rows)), self.part_tokens):
                    loss, count = label_loss(model, part, self.head)
                    total, tokens = total + loss.item(), tokens + count
        if self.cadence.agree() is not None:
            raise hooks.Stopped
        totals, counts = zip(*runtime.gathered((total, tokens)))
        return sum(totals) / sum(counts)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: object = None, metric_key_prefix: str = "eval") -> dict:
        """{"eval_loss"} of the validation rows; keeps the adapter when it is the best one so far.

        A signal ends it at once; the checkpoint of this step is written and owes its evaluation to the run that goes
        on.
        """
        try:
            metrics = {f"{metric_key_prefix}_loss": self.mean_loss(self.eval_dataset)}
        except hooks.Stopped:
            if not self.control.should_save:
                raise  # there has been no step since the last checkpoint
            self.control.should_training_stop = True
            return {}
        loss, step = metrics[f"{metric_key_prefix}_loss"], self.state.global_step
        if step and (self.best is None or loss < self.best["loss"]):
            self.best, self.best_weights = {"step": step, "loss": loss}, adapters.lora_weights(self.model)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        states = runtime.gathered(self._random_state())
        write = partial(self._write_state, states)
        runtime.of_first(checkpoint.save, Path(self.args.output_dir), self.state.global_step, write)

    def _random_state(self) -> dict[str, bytes]:
        """{file name: content} of this process's."""
        with tempfile.TemporaryDirectory() as folder:
            self._save_rng_state(folder)
            return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    def _write_state(self, random_states: list[dict[str, bytes]], folder: Path) -> None:
        """All that the next step depends on: adapter, best adapter, optimizer, schedule, random states, position."""
        adapters.write_adapter(self.model, folder)
        shutil.copyfile(Path(self.args.output_dir) / hooks.METRICS, folder / hooks.METRICS)
        if self.best is not None:
            save_file(self.best_weights, folder / BEST_WEIGHTS)
            write_json(folder / BEST, self.best)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        for name, content in (item for state in random_states for item in state.items()):
            (folder / name).write_bytes(content)
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        source = adapters.adapter_file(folder)
        adapters.set_lora_weights(self.model, adapters.read_weights(source), source)
        if (folder / BEST).exists():
            self.best = json.loads((folder / BEST).read_text(encoding="utf-8"))
            self.best_weights = adapters.read_weights(folder / BEST_WEIGHTS)

    def keep_best(self) -> None:
        """Give the model the best adapter by validation loss; the last one stays where nothing was validated."""
        if self.best is not None:
            adapters.set_lora_weights(self.model, self.best_weights, Path(BEST_WEIGHTS))


def optimizer(flags: dict, device: torch.device) -> str:
    """transformers' name of the optimizer: AdamW, and for a 4-bit base on a GPU its paged form, as in QLoRA: while a
    long batch needs the card's memory, the driver moves the moments out of it (bitsandbytes: those of matrices of
    100,000 numbers and more), instead of failing."""
    return "paged_adamw_32bit" if device.type == "cuda" and flags["load_4bit"] else "adamw_torch_fused"


def build(
    model: nn.Module, train_set: Any, val_set: Any, steps: Plan, flags: dict, pad_token_id: int, device: torch.device
) -> StageTrainer:
    """The stage's trainer. flags: finetune.py's, by name."""
    quantised_gpu = device.type == "cuda" and (flags["load_8bit"] or flags["load_4bit"])
    bf16 = quantised_gpu and torch.cuda.is_bf16_supported()
    evaluates = len(val_set) > 0
    arguments = TrainingArguments(
        output_dir=flags["output_dir"],
        per_device_train_batch_size=flags["micro_batch_size"],
        per_device_eval_batch_size=flags["micro_batch_size"],
        gradient_accumulation_steps=flags["batch_size"] // flags["micro_batch_size"] // ranks.world_size(),
        num_train_epochs=flags["num_epochs"],
        optim=optimizer(flags, device),
        learning_rate=flags["learning_rate"],
        warmup_steps=steps.warmup,
        bf16=bf16,
        fp16=quantised_gpu and not bf16,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=steps.every,
        eval_on_start=False,
        save_strategy="steps",
        save_steps=steps.every,
        seed=flags["seed"],
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=_loggers(flags) or "none",
        disable_tqdm=False,
        run_name=flags["wandb_run_name"] or None,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # they do not change, and processes may evaluate unequal numbers of batches
        accelerator_config={"even_batches": False},  # the fillers of StepOrder make them so
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # or each GPU that can be seen takes micro_batch_size rows more a step
    sharding.shard(model, device)
    cadence, metrics = hooks.Cadence(steps.every, evaluates), hooks.Metrics(Path(flags["output_dir"]))
    head = fast.prepare(model, device) if flags["fast"] else None
    neftune.add_noise(model, flags["neftune_noise_alpha"])
    packed = flags["fast"] and fast.can_pack(model)
    trainer = StageTrainer(
        model=model,
        args=arguments,
        data_collator=collate_packed if packed else lambda rows: collate(rows, pad_token_id),
        train_dataset=train_set,
        eval_dataset=val_set,
        group_by_length=flags["group_by_length"],
        head=head,
        callbacks=[cadence, metrics],
    )
    metrics.trainer = trainer
    trainer.cadence, trainer.metrics = cadence, metrics
    trainer.remove_callback(ProgressCallback)
    trainer.bar = hooks.Bar(metrics)
    trainer.add_callback(trainer.bar)
    runtime.seed_everything(flags["seed"] + ranks.rank())  # each process drops out numbers of its own
    return trainer


def _loggers(flags: dict) -> list[str]:
    """Those asked for, wandb set up by its variables."""
    for name in ("project", "watch", "log_model"):
        if value := flags[f"wandb_{name}"]:
            # Alpaca-LoRA's --wandb_log_model true: the adapter as it is at the end
            os.environ[f"WANDB_{name.upper()}"] = "end" if (name, value) == ("log_model", "true") else value
    wanted = {"wandb": flags["wandb_project"], "tensorboard": flags["tensorboard"]}
    return [name for name, asked in wanted.items() if asked]


def run(trainer: StageTrainer, resume_from: Path | None) -> dict:
    """Train, from a checkpoint where there is one; the model then holds the best adapter.

    Returns {"steps", "losses", "tokens", "speed"} for run.json; speed is of the steps alone, without evaluation and
    saving. Raises Interrupted after a signal (a checkpoint is written), EnvironmentFault when the device's memory is
    too small, or wandb cannot log in.
    """
    cadence = trainer.cadence
    trainer.args.eval_on_start = cadence.owes_evaluation(resume_from)
    trainer.metrics.begin_at(resume_from)
    try:
        with cadence.watching(), contextlib.suppress(hooks.Stopped):
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    except torch.OutOfMemoryError:
        raise EnvironmentFault(
            f"the device's memory is too small: reduce --micro_batch_size ({trainer.args.train_batch_size})"
        ) from None
    except Exception as error:  # wandb is not there to import its classes from
        if not type(error).__module__.startswith("wandb"):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise EnvironmentFault(f"--wandb_project: {reason}") from None
    finally:
        trainer.bar.close()
    if cadence.agree() is not None:
        runtime.of_first(_interrupt, cadence.signal, trainer.state.global_step)
    trainer.keep_best()
    return runtime.of_first(hooks.outcome, trainer.metrics.path, trainer.state.global_step, trainer.best)


def _interrupt(number: signal.Signals, step: int) -> None:
    raise Interrupted(number, f"{number.name} at step {step}; the same command goes on from there")


def summary(losses: dict) -> str:
    """The losses of run's outcome in a few words."""
    if "best" not in losses:
        return f"training loss {losses['train']:.3f}, nothing validated"
    return f"validation loss {losses['start']:.3f} -> {losses['best']:.3f} (step {losses['best_step']})"
