"""verdicts.jsonl: every reply of every judge, raw, one line each, on the disk before the next is asked for.

A line: judge (the model asked for), mode, category, number, rotation, order (the systems, System1 first), attempt,
temperature, base_url, model (the one that answered), date, marker, prompt_sha256, finish_reason, tokens, reply; and
how it was read then: scores, problem. Whoever needs the scores parses the reply again.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from utils import journal, replies
from utils.errors import DataFault
from utils.judging import Call

NAME = "verdicts.jsonl"
Key = tuple[str, str, int, int]
_KEYS = ("judge", "mode", "category", "number", "rotation", "order", "reply", "finish_reason")


@dataclass(frozen=True)
class Verdict:
    """What one judge says of one call: scores by place, or None and why."""

    order: tuple[str, ...]
    scores: list[float] | None
    problem: str
    revised: tuple[int, ...] = ()


class Journal(journal.Journal):
    """The file, open for appending, by one process at a time.

    lines: what was there. Raises EnvironmentFault while another process writes it, DataFault for a line not of ours.
    """

    def __init__(self, output_dir: str | Path):
        super().__init__(Path(output_dir) / NAME)
        self.lines = read(output_dir)


def read(output_dir: str | Path) -> list[dict]:
    """All whole lines; none where there is no file. Raises DataFault naming a line that is not a verdict."""
    path = Path(output_dir) / NAME
    lines = []
    for number, raw in enumerate(journal.whole_lines(path), 1):
        try:
            line = json.loads(raw)
        except ValueError:
            line = None
        if not isinstance(line, dict) or any(key not in line for key in _KEYS):
            raise DataFault(f"{path}:{number}: not a verdict")
        lines.append(line)
    return lines


def key_of(line: Mapping) -> Key:
    """The Call.key this line answers."""
    return line["mode"], line["category"], line["number"], line["rotation"]


def judge_of(line: Mapping) -> str:
    """The judge's name in tables: its model, and the mode where it is not the robust one."""
    return line["judge"] if line["mode"] == "robust" else f"{line['judge']} ({line['mode']})"


def mode_of(verdicts: Mapping[Key, Verdict]) -> str:
    """The mode of one judge's verdicts."""
    return next(iter(verdicts))[0]


def parse(line: Mapping, call: Call) -> Verdict:
    """Read a line's reply again."""
    got = replies.parse(line["reply"], len(call.order), call.answers, line["finish_reason"])
    return Verdict(tuple(line["order"]), got.scores, got.problem, got.revised)


def by_judge(lines: Iterable[Mapping], calls: Iterable[Call]) -> dict[str, dict[Key, Verdict]]:
    """{judge: {call key: its first verdict with scores, else its last without}}, judges in the order of the file.

    Raises DataFault for a line about no call of ours.
    """
    known = {call.key: call for call in calls}
    judges: dict[str, dict[Key, Verdict]] = {}
    for number, line in enumerate(lines, 1):
        call = known.get(key_of(line))
        if call is None or tuple(line["order"]) != call.order:
            raise DataFault(f"{NAME}:{number}: no prompt of items.json was asked in this way")
        verdicts = judges.setdefault(judge_of(line), {})
        before = verdicts.get(call.key)
        if before is None or before.scores is None:
            verdicts[call.key] = parse(line, call)
    return judges
