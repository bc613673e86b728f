"""Tokens out of a running `generate`, as an iterator: errors reach the reader, and a reader who leaves ends the work.

The names are Alpaca-LoRA's (Stream, Iteratorize), the idea text-generation-webui's.
"""

import queue
import threading
from collections.abc import Callable, Iterator

import torch
from transformers import StoppingCriteria


class ReaderLeft(Exception):
    """Raised inside the generating thread when nobody reads any more."""


class Stream(StoppingCriteria):
    """Hands every new state of the sequence, a 1-D tensor of ids, to `callback`; never stops by itself."""

    def __init__(self, callback: Callable[[torch.Tensor], None]):
        self.callback = callback

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: object) -> torch.BoolTensor:
        """Hand over; nobody is done yet."""
        self.callback(input_ids[0])
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Iteratorize:
    """Runs work(callback) in a thread and iterates over what it calls callback with.

        with Iteratorize(lambda callback: model.generate(..., stopping_criteria=[Stream(callback)])) as states: ...

    An exception of `work` is raised again in the reader. Leaving the with block stops the work at its next callback.
    """

    def __init__(self, work: Callable[[Callable], None]):
        self._queue: queue.Queue = queue.Queue()
        self._left = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)

    def _run(self, work: Callable[[Callable], None]) -> None:
        try:
            work(self._put)
        except ReaderLeft:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._queue.put(self)  # the end mark: an object that no callback can be given by accident

    def _put(self, value: object) -> None:
        if self._left.is_set():
            raise ReaderLeft
        self._queue.put(value)

    def __enter__(self) -> "Iteratorize":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()

    def __iter__(self) -> Iterator:
        while (value := self._queue.get()) is not self:
            yield value
        if self._error is not None:
            raise self._error
