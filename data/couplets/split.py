"""Couplets -> couplet-0.json (the training half), couplet-1.json (the test half), couplet-all.json (both).

    python data/couplets/split.py --input data/raw/couplets --output_dir data/couplets

A half is in.txt (first lines) and out.txt (second lines), a line a couplet, with a blank behind every character.
"""

import sys
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.converting import Piece, Raw, Row, convert, fill_rows, find_sources, row_or_drop
from utils import cli
from utils.errors import ArgumentFault, DataFault
from utils.strict_json import read_lines

TRAIN, TEST, ALL = FILES = ("couplet-0.json", "couplet-1.json", "couplet-all.json")
LAYOUTS = ("train/in.txt", "test/in.txt", "in.txt")


def main(input: str = "", output_dir: str = "") -> None:
    """Convert couplets: the first line is the instruction, the second the output, without the blanks between.

    --input: a folder with train/ and test/, or with in.txt and out.txt alone, which count as the training half.
    --output_dir: where the arrays and report.json go.
    """
    firsts = find_sources(input, output_dir, LAYOUTS)
    if len(firsts) > 1 and any(first.parent == Path(input) for first in firsts):
        raise ArgumentFault(f"--input {input}: has in.txt beside train/ or test/, must have one or the other")
    for first in firsts:
        if first.name != "in.txt" or not _second(first).is_file():
            raise ArgumentFault(f"--input {input}: must be a folder, or in.txt, with out.txt beside it")
    sources = [half for first in firsts for half in (first, _second(first))]
    raws = (raw for first in firsts for raw in _read_pairs(first))
    convert("couplets", sources, output_dir, FILES, partial(fill_rows, raws, _pieces))


def _second(first: Path) -> Path:
    return first.with_name("out.txt")


def _read_pairs(first: Path) -> Iterator[Raw]:
    """Every couplet of a half. Raises DataFault where the files have not the same number of lines."""
    half = TEST if first.parent.name == "test" else TRAIN
    number = 0
    for number, lines in enumerate(zip_longest(_lines(first), _lines(_second(first))), 1):
        if None in lines:
            short, long = (first, _second(first)) if lines[0] is None else (_second(first), first)
            raise DataFault(
                f"{long}:{number}: has no line to go with it, {short} ends before: no couplet can be trusted"
            )
        place = {"line": number, "file": f"{first.parent.name}/in.txt"}
        yield Raw(f"{first}:{number}", place, {"half": half, "lines": lines})
    if not number:
        raise DataFault(f"{first}: no lines")


def _lines(path: Path) -> Iterator[str]:
    """The lines, without blank ones at the end of the file."""
    blank: list[str] = []
    for _, line in read_lines(path):
        if line.strip():
            yield from blank
            blank.clear()
            yield line
        else:
            blank.append(line)


def _pieces(where: str, raw: dict) -> Iterator[Piece]:
    first, second = (line.replace(" ", "") for line in raw["lines"])
    row = row_or_drop(raw["half"], first, "", second)
    yield row
    if isinstance(row, Row):
        yield row._replace(file=ALL)


if __name__ == "__main__":
    cli.run(main)
