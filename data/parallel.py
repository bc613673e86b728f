"""A function run over tasks on all cores, its results in the order of the tasks; a JSON Lines file cut into such tasks.

Not a command: data/firefly/split.py uses it, whose file is the one that is worth it.
"""

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from utils.errors import EnvironmentFault

PART = 1 << 21  # bytes of a task
_STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
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


def in_order(function: Callable, tasks: Iterable) -> Iterator[tuple]:
    """Yield (task, function(task)) for every task, in order, worked out by one process a core (at most four).

    What a call raises is raised here, when its turn comes. A process has one task at a time, so memory stays small.
    """
    with contextlib.ExitStack() as stack:
        idle = deque(stack.enter_context(_worker(function)) for _ in range(min(4, os.cpu_count() or 1)))
        busy: deque[tuple[Connection, object]] = deque()
        for task in tasks:
            done = []
            if not idle:
                worker, earlier = busy.popleft()
                done.append((earlier, _result(worker)))
                idle.append(worker)
            idle[0].send(task)
            busy.append((idle.popleft(), task))
            yield from done
        for worker, task in busy:
            yield task, _result(worker)


def in_turn(function: Callable, tasks: Iterable) -> Iterator[tuple]:
    """The same in this process, for what is too small to be worth others."""
    return ((task, function(task)) for task in tasks)


@contextlib.contextmanager
def _worker(function: Callable) -> Iterator[Connection]:
    here, there = Pipe()
    process = Process(target=_work, args=(function, here, there), daemon=True)
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # what a handler raises within a fork is lost
    process.start()
    there.close()
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        yield here
    finally:
        here.close()  # its end: what the worker waits for, and what stops it in the middle of an answer
        process.join()


def _work(function: Callable, here: Connection, there: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one says so
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    here.close()
    with contextlib.suppress(EOFError, OSError):
        while True:
            task = there.recv()
            try:
                answer = True, function(task)
            except Exception as error:
                answer = False, error
            there.send(answer)


def _result(worker: Connection) -> object:
    try:
        fine, answer = worker.recv()
    except EOFError:
        raise EnvironmentFault("a process of the conversion was killed (is the memory full?)") from None
    if not fine:
        raise answer
    return answer
