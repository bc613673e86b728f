"""baize -> baize-<topic>.json, e.g. baize-quora.json: dialogues of several turns.

    python data/baize/split.py --input data/raw/baize --output_dir data/baize

A dialogue is one text: a heading, then turns that begin with [|Human|] and [|AI|], by turns, each on a new line.
"""

import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.converting import Piece, convert, dialogue, fill_rows, find_sources, read_objects, texts
from utils import cli
from utils.errors import ArgumentFault, DataFault

RAW = ("*_chat_data.json",)
_HEADING = "The conversation between human and AI assistant.\n"
_MARKER = re.compile(r"^\[\|(Human|AI)\|\] ?", re.MULTILINE)


def main(input: str = "", output_dir: str = "") -> None:
    """Convert baize's dialogues into rows with a history.

    --input: one of alpaca_, medical_, quora_ and stackoverflow_chat_data.json, or the folder they lie in.
    --output_dir: where the arrays and report.json go.
    """
    sources = find_sources(input, output_dir, RAW)
    for source in sources:
        if not source.match(RAW[0]) or source.name == RAW[0][1:]:
            raise ArgumentFault(f"--input {input}: the file must be named <topic>_chat_data.json")
    for source in sources:
        file = f"baize-{source.name.removesuffix('_chat_data.json')}.json"
        fill = partial(fill_rows, read_objects(source), partial(_pieces, file))
        convert("baize", [source], output_dir, (file,), fill)


def _pieces(file: str, where: str, raw: dict) -> Iterator[Piece]:
    (text,) = texts(where, raw, "input")
    sides = _sides(where, text)
    end = ""
    if len(sides) % 2:
        end = "the last question has no answer" if sides.pop().strip() else ""
    yield from dialogue(file, list(zip(sides[::2], sides[1::2])), end)


def _sides(where: str, text: str) -> list[str]:
    """What is said, human and AI by turns. A marker out of turn, or within a line, is a quotation."""
    if not text.startswith(f"{_HEADING}[|Human|]"):
        raise DataFault(f'{where}: "input" must begin with {_HEADING!r} and [|Human|]')
    markers: list[re.Match[str]] = []
    for found in _MARKER.finditer(text):
        if found[1] == ("Human", "AI")[len(markers) % 2]:
            markers.append(found)
    ends = [*(marker.start() for marker in markers[1:]), len(text)]
    return [text[marker.end() : end].removesuffix("\n") for marker, end in zip(markers, ends)]


if __name__ == "__main__":
    cli.run(main)
