"""Broken data files by the thousand: each must be read as another reader reads it, or be refused with its place.

    python scripts/bench/fuzz_rows.py --files 10000

A file of good rows is changed at random: bytes, characters, structure, encoding. A second, slower reader (below; it
shares no code with utils/strict_json.py and utils/rows.py) says what is right. Counted as failures: an exception that
is no fault of the data, a process that dies, a file accepted that must not be or refused that must be accepted, texts
that differ after the way through the Arrow table, a message without the file's name or of more than one line.
"""

import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import cli

TEXTS = (
    "问题", "答\n案", "2023-01-02", "a\u2028b\u0085c", "\ufeff", "😀", " ", "", "\u3000", "</s>", "0", '"',
    "\\", "é" * 40,
)  # fmt: skip
VALUES = (
    None, 0, 1.5, True, [], {}, [[]], {"a": 1}, "", " ", "x", [["问", "答"]], [["问"]], [["a", 1]],
    ["a"], [None], 10**400,
)  # fmt: skip
PIECES = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\n", b"\r\n", b" ", b"\0", b"\xff", b"\xe4\xbd", b"\xef\xbb\xbf",
    b"null", b"NaN", b"-Infinity", b"1e999", b"01", b"\\u0000", b"\\ud83d", b"\\ude00", b"\xed\xa0\x80", b"[" * 2000,
    b'{"a":' * 2000, b'"instruction": "x", ', b"}{", b"\x0c", b"\xc2\x85", b"\xe2\x80\xa8", b"version https://git-lfs",
)  # fmt: skip


def good_rows(draw: random.Random) -> list[dict]:
    """Some rows that can be trained on."""
    rows = []
    for _ in range(draw.randint(1, 5)):
        row = {"instruction": draw.choice(TEXTS) + "问", "output": "答" + draw.choice(TEXTS)}
        if draw.random() < 0.5:
            row["input"] = draw.choice(TEXTS)
        if draw.random() < 0.2:
            row["history"] = [["早" + draw.choice(TEXTS), "好"]]
        if draw.random() < 0.2:
            row["id"] = draw.choice(VALUES)
        rows.append(row)
    return rows


def written(rows: list, draw: random.Random) -> bytes:
    """The rows in one of the forms that are read."""
    dump = partial(json.dumps, ensure_ascii=draw.random() < 0.5)
    form = draw.randrange(4)
    if form == 0:
        text = dump(rows, indent=draw.choice((None, 0, 1)))
    elif form == 1:
        text = "[\n" + ",\n".join(map(dump, rows)) + "\n]\n"
    else:
        text = draw.choice(("\n", "\r\n", "\n\n", "", " ")).join(map(dump, rows)) + draw.choice(("", "\n"))
    return draw.choice((b"", b"", b"\xef\xbb\xbf")) + text.encode("utf-8", "surrogatepass")


def change_bytes(data: bytes, draw: random.Random) -> bytes:
    """One change of a few bytes somewhere."""
    start = draw.randrange(len(data) + 1)
    end = min(len(data), start + draw.choice((0, 1, 1, 2, 5, 50)))
    kind = draw.randrange(4)
    if kind == 0:
        return data[:start] + draw.choice(PIECES) + data[end:]
    if kind == 1:
        return data[:start] + draw.randbytes(draw.randint(1, 3)) + data[end:]
    if kind == 2:
        return data[:start] + data[start:end] * 2 + data[end:]
    return data[:start] if draw.random() < 0.3 else data[:start] + data[end:]


def change_rows(rows: list, draw: random.Random) -> object:
    """One change of the structure."""
    kind, where = draw.randrange(5), draw.randrange(len(rows))
    if kind == 0:
        rows[where] = draw.choice(VALUES)
    elif kind == 1:
        rows[where][draw.choice(("instruction", "input", "output", "history", "more"))] = draw.choice(VALUES)
    elif kind == 2:
        rows[where].pop(draw.choice(list(rows[where])))
    elif kind == 3:
        rows[where]["output"] = draw.choice(("\ud800", "\0", "a\udc00", "\ud83d\ude00", "\u2029"))
    else:
        rows = draw.choice(([rows], [], rows * 3, [{"data": rows}]))
    return rows


def fuzzed(seed: int) -> bytes:
    """The content of one file; the same for the same seed."""
    draw = random.Random(seed)
    rows = good_rows(draw)
    if draw.random() < 0.4:
        rows = change_rows(rows, draw)
    data = written(rows, draw)
    if draw.random() < 0.05:
        encoding = draw.choice(("gb18030", "utf-16", "utf-16-le", "utf-32"))
        return data.decode("utf-8", "replace").encode(encoding, "replace")
    for _ in range(draw.choice((0, 1, 1, 1, 2, 4))):
        data = change_bytes(data, draw)
    return data


class Wrong(Exception):
    """The second reader refuses."""


def second_reader(data: bytes) -> list[dict]:
    """The rows a file holds, read whole and slowly. Raises Wrong, ValueError or RecursionError."""
    text = data.decode("utf-8").removeprefix("\ufeff")
    load = partial(json.loads, object_pairs_hook=_once, parse_constant=_never)
    blanks = " \t\r\n"
    values = []
    if text.strip(blanks)[:1] == "[":
        values = load(text)
    else:
        for line in text.split("\n"):
            rest = line.strip(blanks)
            while rest:
                try:
                    values.append(load(rest))
                    rest = ""
                except json.JSONDecodeError as error:
                    if error.msg != "Extra data":
                        raise
                    values.append(load(rest[: error.pos]))
                    rest = rest[error.pos :].strip(blanks)
    if data.startswith(b"version https://git-lfs") or not values:
        raise Wrong
    return [_row(value) for value in values]


def _once(pairs: list) -> dict:
    if len({key for key, _ in pairs}) < len(pairs):
        raise Wrong
    return dict(pairs)


def _never(name: str) -> None:
    raise Wrong


def _row(value: object) -> dict:
    if not isinstance(value, dict):
        raise Wrong
    if "\0" in (whole := _everything(value)):
        raise Wrong
    whole.encode("utf-8")  # a lone surrogate has no bytes
    row = {key: value.get(key) for key in ("instruction", "input", "output", "history")}
    row["input"] = "" if row["input"] is None else row["input"]
    row["history"] = [] if row["history"] is None else row["history"]
    texts = [row["instruction"], row["output"]]
    if not isinstance(row["history"], list):
        raise Wrong
    for turn in row["history"]:
        if not isinstance(turn, list) or len(turn) != 2:
            raise Wrong
        texts += turn
    if not all(isinstance(text, str) and text.strip() for text in texts) or not isinstance(row["input"], str):
        raise Wrong
    return row


def _everything(value: object) -> str:
    """All texts of a value, keys too, in one."""
    if isinstance(value, dict):
        return "".join(key + _everything(one) for key, one in value.items())
    if isinstance(value, list):
        return "".join(map(_everything, value))
    return value if isinstance(value, str) else ""


def check(folder: str, seed: int) -> tuple[str, str]:
    """("accepted" | "refused" | "failed", why it failed) of one file."""
    from utils import dataset
    from utils.errors import Fault

    data = fuzzed(seed)
    path = Path(folder) / f"{seed}.{'json' if seed % 2 else 'jsonl'}"
    path.write_bytes(data)
    try:
        right = second_reader(data)
    except (Wrong, ValueError, RecursionError):
        right = None
    try:
        rows = dataset.load_rows(str(path))[0].remove_columns(["line", "file"])
        if right is None:
            return "failed", f"{path} was accepted"
        return ("accepted", "") if list(rows) == right else ("failed", f"{path}: the rows differ")
    except Fault as fault:
        if right is not None:
            return "failed", f"{path} was refused: {fault}"
        if not str(fault).startswith(str(path)) or "\n" in str(fault) or fault.exit_code != 3:
            return "failed", f"{path}: what is this: {fault!r}"
        path.unlink()
        return "refused", ""
    except Exception as error:
        return "failed", f"{path}: {error!r}"


def quietly(work: Callable[[int], tuple[str, str]], seed: int) -> tuple[str, str]:
    """work(seed) without what it prints."""
    with open(os.devnull, "w") as nothing:
        sys.stdout = sys.stderr = nothing
        return work(seed)


def fuzz(files: int, first: int, folder: str) -> tuple[Counter, list[str]]:
    """Check `files` files from seed `first` on; (how many were accepted, refused, failed; why)."""
    from utils import parallel

    counts: Counter[str] = Counter()
    failures = []
    work = partial(quietly, partial(check, folder))
    for outcome, why in parallel.in_order(work, range(first, first + files), max(2, parallel.cores())):
        counts[outcome] += 1
        failures += [why] if why else []
    return counts, failures


def main(
    files: int = 10_000,  # how many
    seed: int = 0,  # of their faults
) -> None:
    """Fuzz so many files. Leaves with 1 after a failure; the files that failed are kept and named."""
    folder = tempfile.mkdtemp(prefix="fuzz-rows-")
    os.environ["DREAMERGPT_CACHE"] = f"{folder}/cache"
    counts, failures = fuzz(files, seed, folder)
    print(f"{files} files: {counts['accepted']} accepted, {counts['refused']} refused, {counts['failed']} failed")
    if failures:
        print("\n".join(failures[:20]))
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    cli.run(main)
