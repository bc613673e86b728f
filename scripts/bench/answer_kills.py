"""Kill generate.py (-9) at random moments of its batch answers, start it again, and compare what it ends with.

    python -m tests.tiny_models /tmp/tiny
    OMP_NUM_THREADS=1 python scripts/bench/answer_kills.py --base_model /tmp/tiny --output_dir /tmp/answer-kills

The runs are forked children of one warm process that has imported everything. Each series of kills ends with a run that
nobody disturbs: its test.json must be that of the run without kills (seconds apart), and no prompt may have been
answered twice.
"""

import json
import os
import random
import runpy
import shutil
import signal
import sys
import time
import traceback
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import cli

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("adapters", "answers", "batch", "chat", "models", "tuned")
WARM = get_context("forkserver")


def main(
    base_model: str = "",  # a model folder, a tiny one
    output_dir: str = "answer-kills",  # for the runs; emptied first
    kills: int = 50,  # in all
    seed: int = 0,  # of the moments
) -> None:
    """Kill `kills` times, one to four times a run; exits with an error when a run ends otherwise."""
    folder = Path(output_dir).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    prompts = [f"{a}加{b}等于几？" + "请想一想。" * (b % 4) for a in range(12) for b in range(10)]
    (folder / "prompts.json").write_text(json.dumps(prompts, ensure_ascii=False), encoding="utf-8")
    WARM.set_forkserver_preload([f"utils.{room}" for room in ROOMS])
    dice = random.Random(seed)
    command = (base_model, folder / "prompts.json")
    _run(command, folder / "warm")
    begin = time.monotonic()
    _run(command, folder / "undisturbed")
    length = time.monotonic() - begin
    batches = (folder / "undisturbed/test.json.journal").read_bytes().count(b"\n") - 1
    done, runs, fell = 0, 0, {"before the first answer": 0, "between answers": 0, "behind the last": 0}
    while done < kills:
        out = folder / f"run-{runs}"
        runs += 1
        for _ in range(min(dice.randint(1, 4), kills - done)):
            # a random moment of the whole run, or shortly after a batch was written
            by_time = dice.random() < 0.4
            end = (dice.uniform(0, length), 10**9) if by_time else (600, dice.randint(0, batches))
            if not _run(command, out, *end, dice.uniform(0, 0.02)):
                continue
            done += 1
            now = _answered(out)
            fell[list(fell)[0 if not now else 1 if now < len(prompts) else 2]] += 1
        _run(command, out)
        assert _result(out) == _result(folder / "undisturbed"), f"{out}: not what the undisturbed run ended with"
        lines = [json.loads(line) for line in (out / "test.json.journal").read_text(encoding="utf-8").splitlines()[1:]]
        numbers = [int(number) for line in lines for number in line["answers"]]
        assert sorted(numbers) == list(range(len(prompts))), f"{out}: a prompt is missing, or was answered twice"
        left = [path.name for path in out.iterdir() if path.name not in ("test.json", "test.json.journal", "log")]
        assert not left, f"{out}: left over {left}"
    told = ", ".join(f"{where} {times}" for where, times in fell.items())
    print(f"{done} kills in {runs} runs, all ended alike: {told}")


def _answered(out: Path) -> int:
    journal = out / "test.json.journal"
    lines = journal.read_bytes().split(b"\n")[1:-1] if journal.exists() else []
    return sum(len(json.loads(line)["answers"]) for line in lines)


def _result(out: Path) -> list[dict]:
    rows = json.loads((out / "test.json").read_text(encoding="utf-8"))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def _run(command: tuple[str, Path], out: Path, seconds: float = 600, batches: int = 10**9, later: float = 0.0) -> bool:
    """One run, killed (True) after so many seconds, or a little `later` than so many batches were written, if it still
    runs then. Raises AssertionError for another exit code than 0."""
    out.mkdir(exist_ok=True)
    journal = out / "test.json.journal"
    process = WARM.Process(target=_child, args=(*command, out))
    process.start()
    end = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < end:
        if journal.exists() and journal.read_bytes().count(b"\n") > batches:
            time.sleep(later)
            break
        process.join(0.001)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -9), f"{out}: exit code {process.exitcode}\n{(out / 'log').read_text()[-2000:]}"
    return process.exitcode == -9


def _child(base_model: str, prompts: Path, out: Path) -> None:
    sys.stdout = sys.stderr = open(out / "log", "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (up to the end)
    flags = {
        "base_model": base_model, "prompt_template": "alpaca_short", "is_ui": False, "test_input_path": prompts,
        "output_path": out / "test.json", "max_new_tokens": 24, "batch_tokens": 400,
    }  # fmt: skip
    sys.argv = [str(ROOT / "generate.py"), *(f"--{name}={value}" for name, value in flags.items())]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


if __name__ == "__main__":
    cli.run(main)
