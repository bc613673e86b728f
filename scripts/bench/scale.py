"""Does the number of rows cost anything? finetune.py on 1,000 rows and on 100,000, some steps each.

    python -m tests.tiny_models /tmp/tiny
    python scripts/bench/scale.py --base_model /tmp/tiny

Every size runs twice and is ended after so many steps: the first run reads and tokenizes, the second finds its tables.
One line a run: seconds until the first step is done, tokens a second of the steps, peak memory. Memory is that of the
process alone (RssAnon): tables that lie in files and are mapped cost none.
"""

import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import cli

ROOT = Path(__file__).resolve().parents[2]
CHARACTERS = "中国的首都是哪里把这句话译成英文我喜欢读书一加等于几写行打印你好睡不着怎么办对出下联春风秋月很谢"


def main(
    base_model: str = "",  # a model folder, a tiny one
    sizes: tuple[str, ...] = ("1000", "100000"),  # numbers of rows
    steps: int = 120,  # of each run
    batch: int = 16,  # rows a step
) -> None:
    """Measure each number of rows, a first and a second run. Every step has `batch` rows of 10 to 120 characters."""
    with tempfile.TemporaryDirectory() as folder:
        for size in map(int, sizes):
            rows = _rows(Path(folder, f"{size}.json"), size)
            for which in ("first", "second"):
                out = Path(folder, f"{which}-{size}")
                seconds, speed, peak = _measure(base_model, rows, out, steps, batch)
                print(
                    f"{size:7} rows, {which:6} run: first step after {seconds:5.1f} s, {speed:6.0f} tokens/s, "
                    f"{peak / 1e6:5.0f} MB",
                    flush=True,
                )


def _rows(path: Path, count: int) -> Path:
    draw = random.Random(0)

    def text(least: int, most: int) -> str:
        return "".join(draw.choices(CHARACTERS, k=draw.randint(least, most)))

    rows = [{"instruction": f"{number}：{text(5, 60)}", "input": "", "output": text(5, 60)} for number in range(count)]
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def _measure(base_model: str, rows: Path, out: Path, steps: int, batch: int) -> tuple[float, float, int]:
    """(seconds to the end of the first step, median tokens a second of the others, largest RssAnon in bytes)."""
    flags = {"base_model": base_model, "data_path": rows, "output_dir": out, "load_8bit": False, "val_set_size": 0}
    flags |= {"batch_size": batch, "micro_batch_size": batch, "num_epochs": 2 * steps, "train_on_inputs": False}
    metrics, begin, first, anonymous = out / "metrics.jsonl", time.monotonic(), [], [0]
    command = [sys.executable, str(ROOT / "finetune.py"), *(f"--{name}={value}" for name, value in flags.items())]
    with open(out.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    done = 0
    while done < steps and process.poll() is None:
        time.sleep(0.02)
        done = metrics.read_text(encoding="utf-8").count("\n") if metrics.exists() else 0
        if done and not first:
            first.append(time.monotonic() - begin)
        anonymous.append(max(anonymous.pop(), _anonymous(process.pid)))
    process.send_signal(signal.SIGTERM)
    if process.wait() != 128 + signal.SIGTERM:
        raise SystemExit(out.with_suffix(".log").read_text(encoding="utf-8")[-2000:])
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()][1:]
    return first[0], statistics.median(line["tokens_read"] / line["seconds"] for line in lines), anonymous[0]


def _anonymous(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return 0  # it has ended


if __name__ == "__main__":
    cli.run(main)
