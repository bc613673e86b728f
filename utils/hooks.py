"""What happens around the Trainer's steps: cadence and signals, metrics.jsonl, the progress bar."""

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from utils import ranks, runtime
from utils.errors import ModelFault
from utils.files import write_atomic

METRICS = "metrics.jsonl"
ADVICE = "lower --learning_rate, or --dtype float32"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """A signal came during an evaluation."""


class Cadence(TrainerCallback):
    """Evaluate and save at every n-th step and at the last one; end at a signal, with a checkpoint."""

    def __init__(self, every: int, evaluates: bool):
        self.every, self.evaluates = every, evaluates
        self.received: signal.Signals | None = None  # by this process
        self.signal: signal.Signals | None = None  # what all processes know of
        self.order: Any = None  # set by the trainer; a StepOrder

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, SIGINT, SIGTERM and SIGHUP let the step end and a checkpoint be written.

        One that is ignored already (nohup) stays so.
        """
        heeded = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._remember) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: object) -> None:
        self.received = signal.Signals(number)

    def agree(self) -> signal.Signals | None:
        """The signal that any process has received: all of them end at the same step."""
        self.signal = max(filter(None, runtime.gathered(self.received)), default=self.signal)
        return self.signal

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Tell the order of rows its epoch. accelerate does so too, but does not reach it behind what several processes
        and a skipped beginning wrap around it: an epoch that is gone on with would have the rows of the first one."""
        self.order.set_epoch(state.global_step // (state.max_steps // state.num_train_epochs))

    def _due(self, state: TrainerState) -> bool:
        return state.global_step % self.every == 0 or state.global_step >= state.max_steps

    def owes_evaluation(self, checkpoint: Path | None) -> bool:
        """Whether a run that starts there must first evaluate: a new one, and one that a signal ended at a step where
        an evaluation was due."""
        if checkpoint is None or not self.evaluates:
            return self.evaluates
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        done = any("eval_loss" in log and log["step"] == state.global_step for log in state.log_history)
        return self._due(state) and not done

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        """Set the Trainer's flags for this step."""
        due = self._due(state)
        self.agree()
        control.should_save = due or self.signal is not None
        control.should_evaluate = due and self.evaluates and self.signal is None
        control.should_training_stop = state.global_step >= state.max_steps or self.signal is not None
        return control


class Metrics(TrainerCallback):
    """metrics.jsonl: one line a step (loss, rate, tokens) and one an evaluation. Stops at a loss that is no number."""

    def __init__(self, folder: Path):
        self.path = folder / METRICS
        self.trainer: Any = None  # set by training.build; a StageTrainer
        self.tokens, self.seconds = 0, 0.0  # of the steps of this process

    def begin_at(self, checkpoint: Path | None) -> None:
        """Put back the lines as they were at the checkpoint, none for a new run: steps behind it are made again."""
        if ranks.is_first():
            write_atomic(self.path, (checkpoint / METRICS).read_bytes() if checkpoint else "")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start the step's clock: evaluating and saving do not count."""
        self.begin = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: object,
    ) -> None:
        """Append what the Trainer logs for this step, and stop its clock: only now is a GPU done with it."""
        known = ("loss", "eval_loss", "learning_rate", "grad_norm", "epoch")
        line = {"step": state.global_step} | {key: logs[key] for key in known if key in logs}
        if not math.isfinite(logs.get("eval_loss", 0)):
            advice = ADVICE if state.global_step else "the base model is broken, or overflows (--dtype float32)"
            raise ModelFault(f"the validation loss is {logs['eval_loss']} at step {state.global_step}: {advice}")
        if "loss" in logs:
            self._refuse_spoiled(args, state.global_step, logs)
            seconds = time.monotonic() - self.begin
            line |= {
                "tokens": self.trainer.step_tokens,
                "tokens_read": self.trainer.step_tokens_read,
                "seconds": round(seconds, 3),
            }
            self.tokens, self.seconds = self.tokens + line["tokens_read"], self.seconds + seconds
        if len(line) > 2 and ranks.is_first():
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _refuse_spoiled(self, args: TrainingArguments, step: int, logs: dict) -> None:
        """Stop before a spoiled adapter is saved; the checkpoint before it stays. Under fp16 the scaler meets infinite
        gradients on purpose and skips them."""
        loss, gradient = logs["loss"], logs.get("grad_norm", 0.0)
        if not math.isfinite(loss):
            raise ModelFault(f"the loss is {loss} at step {step}: {ADVICE}")
        if not (math.isfinite(gradient) or args.fp16):
            raise ModelFault(f"the gradient's norm is {gradient} at step {step}: {ADVICE}")
        if step == 1 and loss == 0:
            raise ModelFault("the loss is exactly 0 at the first step: the base model or its labels are broken")


def outcome(metrics: Path, step: int, best: dict | None) -> dict:
    """What metrics.jsonl says of the whole run, however many processes it took: {"steps", "losses", "tokens", "speed"}.

    step: the last one; best: {"step", "loss"} of the lowest validation loss, None where nothing was validated.
    """
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    seconds, read = sum(line["seconds"] for line in steps), sum(line["tokens_read"] for line in steps)
    losses = {"train": sum(line["loss"] for line in steps) / len(steps)}
    if best is not None:
        start = next(line["eval_loss"] for line in lines if "eval_loss" in line and line["step"] == 0)
        losses |= {"start": start, "best": best["loss"], "best_step": best["step"]}
    return {
        "steps": step,
        "losses": losses,
        "tokens": {"supervised": sum(line["tokens"] for line in steps), "read": read},
        "speed": {"seconds": round(seconds, 1), "tokens_per_second": round(read / max(seconds, 1e-9), 1)},
    }


class Bar(ProgressCallback):
    """The Trainer's progress bar with the speed and the latest losses at its end, instead of a printed dictionary a
    step; in a log, which is no terminal, a line a checkpoint. tokens_per_s: those of the rows, without padding."""

    def __init__(self, metrics: Metrics):
        super().__init__()
        self.metrics = metrics
        self.losses: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Begin the bar where the run begins, or goes on."""
        self.current_step = state.global_step
        self.training_bar = tqdm(total=state.max_steps, initial=state.global_step, dynamic_ncols=True, disable=None)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """The line in a log."""
        if self.training_bar is not None and self.training_bar.disable:
            speed = f"tokens_per_s={self._speed():.0f}"
            losses = [f"{key}={self.losses[key]}" for key in ("loss", "eval_loss") if key in self.losses]
            print(f"step {state.global_step} of {state.max_steps}:", ", ".join([*losses, speed]), flush=True)

    def _speed(self) -> float:
        return self.metrics.tokens / max(self.metrics.seconds, 1e-9)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: object,
    ) -> None:
        """Show the speed and the losses."""
        self.losses |= {key: f"{logs[key]:.3f}" for key in ("loss", "eval_loss") if key in logs}
        if self.training_bar is not None:
            self.training_bar.set_postfix(self.losses | {"tokens_per_s": f"{self._speed():.0f}"})

    def close(self) -> None:
        """End the bar's line, so that an error has one of its own."""
        if self.training_bar is not None:
            self.training_bar.close()
            self.training_bar = None
