"""A function run over tasks on all cores, its results in the order of the tasks. Standard library only."""

import contextlib
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection

from utils.errors import EnvironmentFault

_STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def in_order(function: Callable, tasks: Iterable, processes: int) -> Iterator:
    """Yield function(task) for every task, in order, worked out by so many processes; below 2, by this one.

    What a call raises is raised here, when its turn comes. A process has one task at a time, so memory stays small,
    and ends when this one does, however it ends.
    """
    if processes < 2:
        yield from map(function, tasks)
        return
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(function)) for _ in range(processes)]
        busy: deque[Connection] = deque()
        for worker, task in zip(cycle(workers), tasks):
            done = [_result(busy.popleft())] if len(busy) == processes else []
            worker.send(task)
            busy.append(worker)
            yield from done
        while busy:
            yield _result(busy.popleft())


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
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would fight for the cores of the other processes
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
        raise EnvironmentFault("a process was killed (is the memory full?)") from None
    if not fine:
        raise answer
    return answer
