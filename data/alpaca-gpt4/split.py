"""Alpaca-GPT4 (English) -> alpaca-gpt4.json.

    python data/alpaca-gpt4/split.py --input data/raw/alpaca-gpt4 --output_dir data/alpaca-gpt4

Where a task has no input, some rows say so in words ("Noinput", "No input"); those words would be taken for the input.
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.converting import Piece, convert, fill_rows, find_sources, read_objects, row_or_drop, texts
from utils import cli

RAW = ("alpaca_gpt4_data.json",)
FILE = "alpaca-gpt4.json"
_NO_INPUT = ("noinput", "Noinput", "No input", "No Input")


def main(input: str = "", output_dir: str = "") -> None:
    """Convert Alpaca's English tasks as GPT-4 answered them.

    --input: alpaca_gpt4_data.json, or the folder it lies in. --output_dir: where the array and report.json go.
    """
    (source,) = find_sources(input, output_dir, RAW)
    convert("alpaca-gpt4", [source], output_dir, (FILE,), partial(fill_rows, read_objects(source), _pieces))


def _pieces(where: str, raw: dict) -> Iterator[Piece]:
    instruction, input, output = texts(where, raw, "instruction", "input", "output", or_null="input")
    yield row_or_drop(FILE, instruction, "" if input in _NO_INPUT else input, output)


if __name__ == "__main__":
    cli.run(main)
