"""BELLE 0.5M -> belle.json.

    python data/belle/split.py --input data/raw/belle --output_dir data/belle

Both forms are read: instruction, input and output, and the older input and target.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.converting import Piece, convert, fill_rows, find_sources, read_objects, row_or_drop, texts
from utils import cli

RAW = ("Belle_open_source_0.5M.json",)
FILE = "belle.json"


def main(input: str = "", output_dir: str = "") -> None:
    """Convert BELLE's half a million Chinese instructions.

    --input: Belle_open_source_0.5M.json, or the folder it lies in. --output_dir: where the array and report.json go.
    """
    (source,) = find_sources(input, output_dir, RAW)
    convert("belle", [source], output_dir, (FILE,), partial(fill_rows, read_objects(source), _pieces))


def _pieces(where: str, raw: dict) -> Iterator[Piece]:
    if "target" in raw and "instruction" not in raw:
        instruction, output = texts(where, raw, "input", "target")
        yield row_or_drop(FILE, instruction, "", output)
    else:
        yield row_or_drop(FILE, *texts(where, raw, "instruction", "input", "output", or_null="input"))


if __name__ == "__main__":
    cli.run(main)
