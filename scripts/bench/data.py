"""Firefly's converter against the plain way: json.loads a line into lists, json.dump at the end. Both in one run.

    python scripts/bench/data.py --rows 1650000

Prints for each the seconds, the work of all cores together in seconds and the peak memory (the converter's processes
together), then the ratio; the outputs must hold the same rows.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(rows: int = 1_650_000, work_dir: str = "") -> None:
    """Time both on a generated file of the real one's size and shape.

    --rows: of the generated file; 1650000 make 1.17 GB. --work_dir: where it lies meanwhile (4 GB for 1650000).
    """
    with tempfile.TemporaryDirectory(dir=work_dir or None) as folder:
        raw = Path(folder) / "firefly-train-1.1M.jsonl"
        _generate(raw, rows)
        print(f"{rows} rows, {raw.stat().st_size / 1e9:.2f} GB")
        (Path(folder) / "plain").mkdir()
        converter = [str(ROOT / "data/firefly/split.py"), "--input", str(raw), "--output_dir", f"{folder}/out"]
        seconds = _timed("converter", converter)
        plain = _timed("plain way", ["-c", _PLAIN, str(raw), f"{folder}/plain"])
        print(f"the converter is {plain / seconds:.2f} times as fast")
        for index in range(5):
            ours, theirs = (Path(folder) / side / f"firefly-train-{index}.json" for side in ("out", "plain"))
            if json.loads(ours.read_bytes()) != json.loads(theirs.read_bytes()):
                sys.exit(f"firefly-train-{index}.json differs")


def _generate(path: Path, rows: int) -> None:
    draw = random.Random(0)
    signs = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)] + list('，。：“”、\n"1234 :abc')
    text = "".join(draw.choices(signs, k=2_000_000))
    kinds = [f"Kind{index}" for index in range(23)] + ["BELLE"]
    with open(path, "w", encoding="utf-8") as file:
        for kind in draw.choices(kinds, [48_000] * 23 + [543_285], k=rows):
            start, asked = draw.randrange(len(text) - 9_000), draw.randrange(10, 120)
            end = start + asked + int(draw.expovariate(1 / 152)) + 5
            row = {"kind": kind, "input": text[start : start + asked], "target": text[start + asked : end]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _timed(name: str, arguments: list[str]) -> float:
    """Seconds of a run of this Python; prints them, the work and the peak memory of its processes."""
    before, start, peaks = _work(), time.perf_counter(), [0]
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    threading.Thread(target=_watch, args=(process, peaks), daemon=True).start()
    if process.wait():
        sys.exit(f"{name} ended with {process.returncode}")
    seconds = time.perf_counter() - start
    print(f"{name}  {seconds:6.1f} s  {_work() - before:6.1f} s of work  {peaks[0] / 1e6:6.0f} MB", flush=True)
    return seconds


def _work() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _watch(process: subprocess.Popen, peaks: list[int]) -> None:
    while process.poll() is None:
        ids = [process.pid, *_children(process.pid)]
        peaks[0] = max(peaks[0], sum(_resident(number) for number in ids))
        time.sleep(0.05)


def _children(number: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
    except OSError:
        return []


def _resident(number: int) -> int:
    """Bytes of memory of a process; pages that processes share are counted for each."""
    try:
        return int(Path(f"/proc/{number}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


_PLAIN = """
import json, sys
from collections import Counter
rows = []
with open(sys.argv[1], encoding="utf-8") as file:
    for line in file:
        rows.append(json.loads(line))
sizes, seen, files = Counter(row["kind"] for row in rows), Counter(), [[] for _ in range(5)]
for row in rows:
    piece = seen[row["kind"]] // -(-sizes[row["kind"]] // 5)
    files[piece].append({"instruction": row["input"], "input": "", "output": row["target"]})
    seen[row["kind"]] += 1
for index, piece in enumerate(files):
    with open(f"{sys.argv[2]}/firefly-train-{index}.json", "w", encoding="utf-8") as file:
        json.dump(piece, file, ensure_ascii=False)
"""


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from utils import cli

    cli.run(main)
