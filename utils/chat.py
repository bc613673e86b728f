"""Conversations: what a request may hold, how much of the history fits, the answer as it grows, the rows to keep.

No page, no model of its own: it stands between the two, and trusts neither the page's widgets nor who calls past them.
"""

import json
import math
import sys
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from utils.errors import DataFault, Fault
from utils.generation import Assistant
from utils.rows import read_prompts

EXAMPLES = Path(__file__).resolve().parent.parent / "test_data"
NO_EXAMPLES = "08alignment"  # requests that a good model declines
MOST_CHARACTERS = 100_000  # of one message
MOST_TURNS = 200  # of one conversation
INTEGERS = ("top_k", "num_beams", "max_new_tokens", "seed")
RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.01, 1.0),
    "top_k": (1, 200),
    "num_beams": (1, 8),
    "max_new_tokens": (1, 4096),
    "seed": (0, 2**32 - 1),
}
Turns = list[list[str]]


@dataclass(frozen=True)
class Piece:
    """An answer so far; notice: what the reader should know of how it was asked for, "" for nothing."""

    text: str
    notice: str


class Chat:
    """Assistants by the names that the page shows, each with a line about itself."""

    def __init__(self, assistants: Mapping[str, Assistant], about: Mapping[str, str]):
        self._assistants, self._about = dict(assistants), dict(about)
        self.names = list(assistants)
        self.defaults = {name: getattr(assistants[self.names[0]].sampling, name) for name in RANGES}
        self.ranges = {
            name: (min(low, self.defaults[name]), max(high, self.defaults[name]))
            for name, (low, high) in RANGES.items()
        }

    def about(self, name: object) -> str:
        """The line about one of `names`. Raises DataFault."""
        self._assistant(name)
        return self._about[name]

    def respond(
        self, name: object, instruction: object, input: object, history: Turns, settings: Mapping[str, object]
    ) -> Iterator[Piece]:
        """The answer of one of `names`, piece by piece; with beams empty ones until the search has ended.

        history: this conversation's turns, ours; all else may hold anything. Raises DataFault for what is no request,
        and for one that does not fit the context; whatever else goes wrong is told to the server's own screen, and
        raised as a DataFault of one line.
        """
        try:
            assistant = self._assistant(name)
            instruction, input = _text("message", instruction), _text("input", input)
            if not instruction.strip():
                raise DataFault("请输入内容。The message is empty.")
            if len(history) >= MOST_TURNS:
                raise DataFault(f"对话已满 {MOST_TURNS} 轮，请清空。The conversation has {MOST_TURNS} turns: clear it.")
            chosen = {
                key: _number(key, settings.get(key, self.defaults[key]), *limits) for key, limits in self.ranges.items()
            }
            answered = [turn for turn in history if turn[1].strip()]  # not those stopped before their first word
            turns, notice = _fitting(assistant, instruction, input, answered, chosen["max_new_tokens"])
            for text in assistant.respond(instruction, input, turns, **chosen):
                yield Piece(text, notice)
        except Fault as fault:
            raise DataFault(str(fault)) from None
        except Exception as error:
            line = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            print(f"an answer failed: {line}", file=sys.stderr)
            raise DataFault(f"回答失败。The answer failed: {line}") from None

    def _assistant(self, name: object) -> Assistant:
        if not isinstance(name, str) or name not in self._assistants:
            raise DataFault(f"unknown model; there are {', '.join(self.names)}")
        return self._assistants[name]


def _text(what: str, value: object) -> str:
    if not isinstance(value, str | None):
        raise DataFault(f"the {what} must be text")
    text = value or ""
    if len(text) > MOST_CHARACTERS:
        raise DataFault(
            f"内容有 {len(text)} 个字符，最多 {MOST_CHARACTERS}。"
            f"The {what} has {len(text)} characters, more than {MOST_CHARACTERS}."
        )
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise DataFault(f"the {what} holds NUL or half a character")
    return text


def _number(name: str, value: object, low: float, high: float) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataFault(f"{name} 须为数字。{name} must be a number.")
    if name in INTEGERS and value != int(value):
        raise DataFault(f"{name} 须为整数。{name}: {value} is not a whole number.")
    if not low <= value <= high:
        raise DataFault(f"{name} 须在 {low} 与 {high} 之间。{name}: {value} is not between {low} and {high}.")
    if name == "temperature" and 0 < value < 0.01:
        raise DataFault(
            f"temperature 须为 0 或不小于 0.01。temperature: {value} is neither 0 (greedy) nor 0.01 or above."
        )
    return int(value) if name in INTEGERS else float(value)


def _fitting(assistant: Assistant, instruction: str, input: str, history: Turns, wanted: int) -> tuple[Turns, str]:
    """The newest turns that leave room for the answer (a quarter of the context, or less where less is wanted), and
    the notice of those left out."""
    room = assistant.context - min(wanted, assistant.context // 4)

    def tokens(skipped: int) -> int:
        turns = history[skipped:]
        return len(assistant.prompt_ids({"instruction": instruction, "input": input, "history": turns}))

    skipped = bisect_left(range(len(history)), True, key=lambda skipped: tokens(skipped) <= room)
    if not skipped:
        return history, ""
    notice = (
        f"对话超过模型的 {assistant.context} 个 token：最早的 {skipped} 轮已略去。"
        f"The conversation is longer than the model's {assistant.context} tokens: "
        f"the first {skipped} turns are left out."
    )
    return history[skipped:], notice


def training_rows(history: Turns) -> str:
    """A conversation as a file that finetune.py reads: one row whose history is all turns but the last; [] for none."""
    answered = [turn for turn in history if turn[1].strip()]
    rows = []
    if answered:
        *earlier, (instruction, output) = answered
        rows = [{"instruction": instruction, "input": "", "output": output, "history": earlier}]
    return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"


def examples(most: int = 10) -> list[tuple[str, str]]:
    """(instruction, input) of evaluation prompts without a history, one of each category in turn."""
    by_category: dict[str, list[tuple[str, str]]] = {}
    for row in read_prompts(EXAMPLES):
        if not row.get("history") and row.get("category") != NO_EXAMPLES:
            by_category.setdefault(str(row.get("category")), []).append((row["instruction"], row.get("input", "")))
    in_turn = zip_longest(*by_category.values())
    return [example for rank in in_turn for example in rank if example is not None][:most]
