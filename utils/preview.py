"""The dry run: what the model will see of the data, and whether the run fits its device, before anything is loaded.

What training would refuse has been refused before this, with its exit code; everything here is a figure or a warning.
"""

import codecs
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import datasets
import numpy
from tqdm import tqdm

from utils import memory, plots
from utils.encode import IGNORED
from utils.rows import Row, read_prompts

TEST_DATA = Path(__file__).resolve().parent.parent / "test_data"
_NAMED = 3  # places that are named of what is counted
_SHOWN = 400  # characters shown of each end of a piece of a row
_DIM, _PLAIN = "\033[2m", "\033[0m"
# UTF-8 read as Windows-1252 ("ä½\xa0å¥½"): such characters, and the bytes that they were.
_ODD_BYTES = {bytes([byte]).decode("cp1252", "ignore") or chr(byte): byte for byte in range(0x80, 0x100)}
_ODD = re.compile(f"[{re.escape(''.join(_ODD_BYTES))}]{{2,}}")
# UTF-8 read as GBK ("浣犲ソ"), or as GBK and lost ("锟斤拷").
_WIDE = re.compile("[\u2e80-\uffff]{4,}")
_CHINESE = re.compile("[\u4e00-\u9fff]")
_LOST = ("\ufffd", "锟斤拷", "烫烫烫")


def show_data(
    flags: Mapping[str, Any],
    rows: datasets.Dataset,
    origins: list[dict],
    encoded: datasets.Dataset,
    counts: Mapping[str, int],
    tokenizer: Any,
) -> None:
    """Print what the run will read and learn, and three rows of it; draw the lengths into <output_dir>.preview.png.

    rows: all of this run's, as text; encoded, counts: its training rows, see dataset.encode.
    """
    names = [Path(origin["path"]).name for origin in origins]
    used = numpy.bincount(rows["file"][:], minlength=len(origins))
    for origin, count in zip(origins, used, strict=True):
        print(f"data: {count} of the {origin['rows']} rows of {origin['path']}")
    for line in (*_texts(rows, names), *_tokens(encoded["whole"][:], counts, flags["cutoff_len"])):
        print(line)
    picture = Path(f"{Path(flags['output_dir'])}.preview.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    plots.lengths(encoded["whole"][:], flags["cutoff_len"], picture)
    print(f"lengths: drawn in {picture}")
    by_length = numpy.argsort(encoded["whole"][:], kind="stable")
    for index in dict.fromkeys((0, int(by_length[len(by_length) // 2]), int(by_length[-1]))):
        row = encoded[index]
        cut = f", cut to {row['length']}" if row["whole"] > row["length"] else ""
        print(f"\n{names[row['file']]}:{row['line']}, {row['whole']} tokens{cut}, {row['supervised']} learned")
        print("\n".join(_row_lines(row, tokenizer, sys.stdout.isatty())))


def show_run(flags: Mapping[str, Any], encoded: datasets.Dataset, steps: object, model: Any, device: Any) -> None:
    """Print the steps of the run and the memory that one of its processes takes of the device.

    steps: see training.plan; model: the base with its LoRA layers on the meta device.
    """
    print(f"\n{steps}")
    recompute = memory.must_recompute(model, encoded, flags, device)
    parts, free = memory.estimate(model, encoded, flags, device, recompute), memory.free_bytes(device)
    needed = sum(parts.values())
    listed = " + ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
    print(f"memory: {needed / 1e9:.2f} GB on {device.type} ({listed}), {free / 1e9:.2f} GB are free")
    if needed > free:

        def changed(other: Mapping[str, Any]) -> int:
            return sum(memory.estimate(model, encoded, other, device, recompute).values())

        print(f"warning: this does not fit: {memory.advice(changed, flags, free)}")


def _texts(rows: datasets.Dataset, names: list[str]) -> Iterator[str]:
    """Lines about the texts: repeated rows, evaluation prompts among them, garbled and empty-looking ones."""
    evaluated = _evaluation_prompts()
    keys: numpy.ndarray = numpy.empty(len(rows), numpy.uint64)
    garbled, silent, known = [], [], {}
    bar = tqdm(_each(rows), total=len(rows), desc="looking", unit="row", leave=False, disable=None)
    for index, row in enumerate(bar):
        texts = [row["instruction"], row["input"], row["output"], *(text for turn in row["history"] for text in turn)]
        keys[index] = _key("\0".join(texts))
        if (prompt := _key(row["instruction"] + row["input"])) in evaluated:
            known[index] = evaluated[prompt]
        if not any(map(str.isalnum, row["output"])):
            silent.append(index)
        if any(map(looks_garbled, texts)):
            garbled.append(index)

    def place(index: int) -> str:
        return f"{names[rows[index]['file']]}:{rows[index]['line']}"

    _, first, group = numpy.unique(keys, return_index=True, return_inverse=True)
    again = numpy.flatnonzero(first[group] != numpy.arange(len(keys)))
    earlier = dict(zip(again.tolist(), first[group][again].tolist()))
    yield _line("duplicates", "rows repeat an earlier one", earlier, place, place)
    yield _line("test_data", "rows ask what an evaluation prompt asks", known, place, str)
    yield _line("empty", "answers have no letter and no digit", dict.fromkeys(silent), place)
    yield _line("mojibake", "rows look as if they were read in a wrong encoding", dict.fromkeys(garbled), place)


def _line(title: str, what: str, found: dict, place: Callable[[int], str], like: Callable | None = None) -> str:
    """found: row -> what it is like, which `like` puts into words."""
    named = [place(index) + (f" as {like(other)}" if like else "") for index, other in islice(found.items(), _NAMED)]
    listed = f" ({', '.join(named)}{', …' * (len(found) > _NAMED)})" if named else ""
    return f"{'warning: ' if found else ''}{title}: {len(found)} {what}{listed}"


def _each(rows: datasets.Dataset) -> Iterator[Row]:
    table = rows.with_format("arrow")
    for start in range(0, len(rows), 1000):
        yield from table[start : start + 1000].to_pylist()


def _key(text: str) -> int:
    """64 bits of a text's content, whatever its blanks, the width of its letters and their case."""
    folded = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return int.from_bytes(blake2b(folded.encode(), digest_size=8).digest())


def _evaluation_prompts() -> dict[int, str]:
    prompts = {path.name: read_prompts(path) for path in sorted(TEST_DATA.glob("*.json"))}
    return {
        _key(row["instruction"] + row.get("input", "")): f"{name} {number}"
        for name, rows in prompts.items()
        for number, row in enumerate(rows, 1)
    }


def looks_garbled(text: str) -> bool:
    """Whether a part of the text reads as UTF-8 that was decoded as something else."""
    if any(mark in text for mark in _LOST):
        return True
    odd = (bytes(_ODD_BYTES[character] for character in run) for run in _ODD.findall(text))
    wide = (run.encode("gb18030", "ignore") for run in _WIDE.findall(text))
    return any(map(_as_utf8, odd)) or any(len(_CHINESE.findall(_as_utf8(data))) > 1 for data in wide)


def _as_utf8(data: bytes) -> str:
    """The text that these bytes are in UTF-8, whose last character may be cut; "" where they are none."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        return decoder.decode(data)
    except UnicodeDecodeError:
        return ""


def _tokens(lengths: list[int], counts: Mapping[str, int], cutoff_len: int) -> Iterator[str]:
    """Lines about the training rows as tokens, with the histogram of their lengths before the cutoff."""
    supervised, ended = counts["supervised"] / counts["tokens"], counts["ended"] / counts["answers"]
    median, longest = int(numpy.median(lengths)), max(lengths)
    yield f"tokens: {counts['tokens']} in {counts['rows']} training rows, {supervised:.1%} of them supervised"
    yield f"answers: {ended:.1%} of {counts['answers']} keep their end of sequence (--cutoff_len {cutoff_len})"
    yield f"over-long: {counts['truncated']} rows are cut, {counts['masked']} keep nothing to learn and are left out"
    yield f"lengths: median {median}, longest {longest}"
    edges = [*range(0, cutoff_len, -(-cutoff_len // 8)), cutoff_len, *(cutoff_len * factor for factor in (2, 4))]
    amounts, _ = numpy.histogram(lengths, [*(edge + 1 for edge in edges), max(longest, edges[-1]) + 2])
    for low, high, amount in zip(edges, [*edges[1:], None], amounts):
        span = f"{low + 1}-{high}" if high else f"over {low}"
        yield f"  {span:>12} {amount:>8} {'█' * round(40 * amount / max(amounts))}"


def _row_lines(row: Mapping[str, Any], tokenizer: Any, dim: bool) -> Iterator[str]:
    """A row as the model sees it, piece by piece; what is masked is dimmed where the terminal can."""
    for masked, piece in groupby(zip(row["input_ids"], row["labels"]), key=lambda pair: pair[1] == IGNORED):
        text = tokenizer.decode([token for token, _ in piece], clean_up_tokenization_spaces=False)
        if len(text) > 2 * _SHOWN:
            text = f"{text[:_SHOWN]} […] {text[-_SHOWN:]}"
        before, behind = (_DIM, _PLAIN) if masked and dim else ("", "")
        for line in text.split("\n"):
            yield f"{before}{'masked ' if masked else 'learned'} | {_printable(line)}{behind}"


def _printable(text: str) -> str:
    """The text without characters that would move the cursor or colour the terminal."""
    return "".join(repr(one)[1:-1] if unicodedata.category(one) in ("Cc", "Cf") else one for one in text)
