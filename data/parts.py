"""A JSON Lines file cut into parts of whole lines, for processes to work on.

Not a command: data/firefly/split.py uses it, whose file is the one that is worth it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

PART = 1 << 21  # bytes of a task
BLOCK = 1 << 17  # bytes worked on at a time: they stay in the cache


class Part(NamedTuple):
    """Whole lines of a file: their first byte, their length in bytes, the number of the first line."""

    start: int
    length: int
    line: int


def cut_at_lines(path: Path, see: Callable[[bytes], None]) -> Iterator[Part]:
    """The parts of a file, each of about PART bytes; a longer line is a part of its own. `see` is shown all bytes."""
    start, length, line, newlines = 0, 0, 1, 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            see(block)
            end = block.rfind(b"\n") + 1
            newlines += block.count(b"\n")
            if end and length + end >= PART:
                yield Part(start, length + end, line)
                start, length, line, newlines = start + length + end, -end, line + newlines, 0
            length += len(block)
    if length:
        yield Part(start, length, line)


def read_blocks(path: Path, part: Part) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, whole lines) of a part, about BLOCK bytes at a time."""
    line, rest, left = part.line, [], part.length
    with open(path, "rb", buffering=0) as file:
        file.seek(part.start)
        while left and (block := file.read(min(BLOCK, left))):
            left -= len(block)
            end = block.rfind(b"\n") + 1 if left else len(block)
            if end:
                lines = b"".join((*rest, block[:end]))
                yield line, lines
                line, rest = line + lines.count(b"\n"), []
            rest.append(block[end:])
