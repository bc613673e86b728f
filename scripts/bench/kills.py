"""Kill finetune.py (-9) at random moments, start it again with the same command, and compare what it ends with.

    python -m tests.tiny_models /tmp/tiny
    OMP_NUM_THREADS=1 python scripts/bench/kills.py --base_model /tmp/tiny --output_dir /tmp/kills --kills 200

Half of the kills come as soon as a staging folder appears. A quarter hit whole command lines, the others forked
children of one warm process, which has imported everything and so dies in more interesting places. Whatever a run
went through, it must end with the bytes of the run that nobody disturbed; the first that does not ends the bench.
"""

import gc
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import cli

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("adapters", "checkpoint", "dataset", "forgetting", "hooks", "hub", "models", "plots", "record", "training")
PHASES = ("import", "load", "step", "evaluation", "save", "final save")
STAGING = ".staging-"
WARM = get_context("forkserver")


def nothing() -> None:
    """Before a child that is like any other."""


def start(
    flags: dict, log: Path, forked: bool, before: Callable[[], object] = nothing, script: str = "finetune.py"
) -> subprocess.Popen | BaseProcess:
    """Start the training script with these flags, its output into `log`.

    forked: as a child of a warm process, which has imported everything and has no threads; `before`, a function of a
    module, is called in it first. Otherwise as a command line of its own.
    """
    arguments = [str(ROOT / script), *(f"--{name}={_text(value)}" for name, value in flags.items())]
    if forked:
        WARM.set_forkserver_preload([f"utils.{room}" for room in ROOMS])
        process = WARM.Process(target=_child, args=(arguments, log, before))
        process.start()
        return process
    with open(log, "ab") as handle:
        return subprocess.Popen([sys.executable, *arguments], stdout=handle, stderr=handle, preexec_fn=_plain_signals)


def _child(arguments: list[str], log: Path, before: Callable[[], object]) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = sys.stderr = open(handle, "w", encoding="utf-8", buffering=1)  # noqa: SIM115 (up to the end)
    _plain_signals()
    gc.freeze()  # what the parent imported is not looked through again
    before()
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def _plain_signals() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _text(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def until(
    process: subprocess.Popen | BaseProcess, now: Callable[[], bool] = lambda: False, number: int = signal.SIGKILL
) -> int | None:
    """Wait for the process to end: its exit code, -N for one that died of signal N. As soon as now() is true it is
    sent the signal; None when it died of a kill -9 of ours."""
    sent = False
    while True:
        code = process.poll() if isinstance(process, subprocess.Popen) else process.exitcode
        if code is not None:
            return None if sent and code == -signal.SIGKILL else code
        if not sent and now():
            os.kill(process.pid, number)
            sent = True
        time.sleep(0.001)


def after(seconds: float) -> Callable[[], bool]:
    """Whether so much time has passed since this call."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def then(event: Callable[[], bool], seconds: float) -> Callable[[], bool]:
    """Whether so much time has passed since the event was first seen."""
    clock: list[Callable[[], bool]] = []

    def now() -> bool:
        if not clock and event():
            clock.append(after(seconds))
        return bool(clock) and clock[0]()

    return now


def staged(out: Path, count: int, is_final: bool) -> Callable[[], bool]:
    """Whether the count-th staging folder of a checkpoint has appeared, or (is_final) the one of the final adapter."""
    seen: set[str] = set()

    def has_appeared() -> bool:
        names = [name for name in _names(out) if name.startswith(STAGING)]
        seen.update(name for name in names if name.removeprefix(STAGING).isdigit() != is_final)
        return len(seen) >= (1 if is_final else count)

    return has_appeared


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def result(out: Path) -> dict:
    """All of a finished run that must not depend on what it went through; times are left out."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    left = [name for name in _names(out) if name.startswith(".") and name != ".lock"]
    return {
        "adapter": (out / "adapter_model.safetensors").read_bytes(),
        "config": (out / "adapter_config.json").read_bytes(),
        "metrics": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        "run": {key: run.get(key) for key in ("status", "losses", "steps", "files", "held_out")},
        "left over": left,
    }


def phase(out: Path, since: int, undisturbed: dict, forked: bool) -> str:
    """What a run killed just now was doing, read from what it left. since: nanoseconds of its start (time.time_ns).

    "load": checks, rows, base model, the evaluation before the first step. Of a whole command line, all in front of
    the first word in run.json is "import".
    """
    if not _written(out / "run.json", since):
        return "load" if forked else "import"
    if not _written(out / "metrics.jsonl", since):
        return "load"
    stages = [name.removeprefix(STAGING) for name in _names(out) if name.startswith(STAGING)]
    numbers = [int(name.rpartition("-")[2]) for name in _names(out) if name.startswith("checkpoint-")]
    evaluated = {line["step"] for line in undisturbed["metrics"] if "eval_loss" in line}
    if any(not name.rpartition("-")[2].isdigit() for name in stages) or max(numbers, default=0) == max(evaluated):
        return "final save"
    if stages:
        return "save"
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    if not lines:
        return "load"
    last = json.loads(lines[-1])
    if "loss" in last and last["step"] in evaluated:
        return "evaluation"
    return "save" if "eval_loss" in last and last["step"] not in (0, *numbers) else "step"


def _written(path: Path, since: int) -> bool:
    return path.exists() and path.stat().st_mtime_ns >= since


@dataclass
class Campaign:
    """Runs that are killed and started again.

    flags: the script's, without output_dir; folder: where they write; forked: how the undisturbed run is made.
    """

    flags: dict
    folder: Path
    random: random.Random
    forked: bool = False
    script: str = "finetune.py"
    phases: Counter = field(default_factory=Counter)
    runs: int = 0

    def __post_init__(self):
        """One run that nobody disturbs, in a process of its own: what all others must end with."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seconds: dict[bool, float] = {}
        self.training: dict[bool, float] = {}
        self.undisturbed = self._measure(self.folder / "undisturbed", self.forked)

    def kill(self, kills: int, forked: bool) -> None:
        """Make `kills` kills in as many runs as it takes; the last run is left to end, by a child if there is a warm
        process. Raises AssertionError for a run that ends otherwise than the undisturbed one."""
        wanted = self.phases.total() + kills
        if forked not in self.seconds:
            other = self._measure(self.folder / "undisturbed-2", forked)
            assert other == self.undisturbed, "a forked child ends otherwise than a command line"
        while self.phases.total() < wanted:
            self.runs += 1
            out = self.folder / f"run-{self.runs}"
            while (code := self._once(out, forked, self.phases.total() < wanted)) is None:
                forked = forked or (True in self.seconds and self.phases.total() == wanted)
            self._expect(code, out)
            ended = result(out)
            differing = [what for what in ended if ended[what] != self.undisturbed[what]]
            assert not differing, f"{out}: not what the undisturbed run ended with: {differing}"

    def _measure(self, out: Path, forked: bool) -> dict:
        """A run to its end, timed: all of it, and from the first word in metrics.jsonl on."""
        begin, trained = time.monotonic(), []

        def watch() -> bool:
            if not trained and (out / "metrics.jsonl").exists():
                trained.append(time.monotonic())
            return False

        self._expect(until(self._start(out, forked), watch), out)
        self.seconds[forked], self.training[forked] = (time.monotonic() - since for since in (begin, trained[0]))
        return result(out)

    def _start(self, out: Path, forked: bool) -> subprocess.Popen | BaseProcess:
        return start({**self.flags, "output_dir": out}, out.with_suffix(".log"), forked, script=self.script)

    def _once(self, out: Path, forked: bool, is_killed: bool) -> int | None:
        """Start the run (again); the exit code, None when it was killed."""
        since = time.time_ns()
        process = self._start(out, forked)
        code = until(process, self._moment(out, forked, since) if is_killed else lambda: False)
        if code is None:
            self.phases[phase(out, since, self.undisturbed, forked)] += 1
        return code

    def _moment(self, out: Path, forked: bool, since: int) -> Callable[[], bool]:
        """A random moment of the run, or of its training; or, half of the time, when a staging folder appears or a
        little later."""
        kind = self.random.random()
        if kind < 0.25:
            return after(self.random.uniform(0, self.seconds[forked]))
        if kind < 0.5:
            begun = partial(_written, out / "metrics.jsonl", since)
            return then(begun, self.random.uniform(0, self.training[forked]))
        appeared = staged(out, self.random.randint(1, 3), is_final=self.random.random() < 0.3)
        return then(appeared, self.random.choice((0, self.random.uniform(0, 0.02))))

    def _expect(self, code: int | None, out: Path) -> None:
        assert code == 0, f"{out}: exit code {code}\n{out.with_suffix('.log').read_text(encoding='utf-8')[-2000:]}"


def small_run(folder: Path, base_model: str) -> dict:
    """Flags of a run of 10 steps over two epochs, with five evaluations and five checkpoints; its rows are written."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"instruction": f"{a}加{b}等于几？" + "请想一想。" * (b % 4), "input": "", "output": f"{a + b}。"}
        for a in range(4, 8)
        for b in range(1, 10)
    ]
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return {
        "base_model": base_model,
        "data_path": folder / "rows.json",
        "batch_size": 4,
        "micro_batch_size": 2,
        "num_epochs": 2,
        "val_set_size": 16,
        "learning_rate": 1e-2,
        "lora_r": 4,
        "load_8bit": False,
        "group_by_length": True,
        "train_on_inputs": False,
    }


def main(
    base_model: str = "",  # a model folder, a tiny one
    output_dir: str = "kills",  # for the runs
    kills: int = 200,  # in all
    whole: float = 0.25,
    seed: int = 0,  # of the moments
    script: str = "finetune.py",
) -> None:
    """Kill `kills` times and report in which phase; exits with an error when a run ends with other bytes.

    whole: share of the kills that hit whole command lines; a whole one costs an import.
    script: finetune.py or finetune_bloom.py.
    """
    folder = Path(output_dir).resolve()
    begin = time.monotonic()
    campaign = Campaign(small_run(folder, base_model), folder, random.Random(seed), script=script)
    campaign.kill(round(whole * kills), forked=False)
    campaign.kill(kills - round(whole * kills), forked=True)
    print(f"{campaign.phases.total()} kills, {campaign.runs} runs, {time.monotonic() - begin:.0f} s: all identical")
    print(", ".join(f"{name} {campaign.phases[name]}" for name in PHASES))
    if missed := [name for name in PHASES if not campaign.phases[name]]:
        raise SystemExit(f"no kill fell in: {', '.join(missed)}")


if __name__ == "__main__":
    cli.run(main)
