"""A JSON Lines file cut into parts of whole lines, for processes to work on.

Not a command: data/firefly/split.py uses it, whose file is the one that is worth it.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from utils import parallel

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


def read_blocks(path: Path, part: Part) -> Iterator[bytes]:
    """Whole lines of a part, about BLOCK bytes at a time."""
    rest, left = [], part.length
    with open(path, "rb", buffering=0) as file:
        file.seek(part.start)
        while left and (block := file.read(min(BLOCK, left))):
            left -= len(block)
            end = block.rfind(b"\n") + 1 if left else len(block)
            if end:
                yield b"".join((*rest, block[:end]))
                rest = []
            rest.append(block[end:])


def line_at(path: Path, part: Part, bytes_before: int) -> int:
    """The number of the line that begins so many bytes behind the start of a part."""
    with open(path, "rb") as file:
        file.seek(part.start)
        return part.line + file.read(bytes_before).count(b"\n")


def over_parts(function: Callable, tasks: Iterable, size: int) -> Iterator:
    """function(task) of every task, in order, by up to four processes; of a file of one part by this one."""
    return parallel.in_order(function, tasks, min(4, parallel.cores()) if size > PART else 1)
