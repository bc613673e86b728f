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
    """The parts of a file, each of PART bytes and the rest of its last line. `see` is shown all bytes."""
    start, line = 0, 1
    with open(path, "rb") as file:
        while data := file.read(PART) + file.readline():
            see(data)
            yield Part(start, len(data), line)
            start, line = start + len(data), line + data.count(b"\n")


def read_blocks(path: Path, part: Part) -> Iterator[bytes]:
    """Whole lines of a part, about BLOCK bytes at a time."""
    left = part.length
    with open(path, "rb") as file:
        file.seek(part.start)
        while data := file.read(min(BLOCK, left)):
            data += file.readline() if len(data) < left else b""
            left -= len(data)
            yield data


def over_parts(function: Callable, tasks: Iterable, size: int) -> Iterator:
    """function(task) of every task, in order, by up to four processes; of a file of one part by this one."""
    return parallel.in_order(function, tasks, min(4, parallel.cores()) if size > PART else 1)
