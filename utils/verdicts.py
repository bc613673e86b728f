"""verdicts.jsonl: every reply of every judge, raw, one line each, on the disk before the next is asked for.

A line: judge (the model asked for), mode, category, number, rotation, order (the systems, System1 first), attempt,
temperature, base_url, model (the one that answered), date, marker, prompt_sha256, finish_reason, tokens, reply; and
how it was read then: scores, problem. Whoever needs the scores parses the reply again.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from utils import replies
from utils.errors import DataFault
from utils.journal import Journal, whole_lines
from utils.judging import Call
from utils.replies import Parsed

NAME = "verdicts.jsonl"
KEY = ("mode", "category", "number", "rotation")  # what Call.key holds
_NEEDED = ("judge", *KEY, "order", "reply", "finish_reason")
Verdicts = list[tuple[Call, Parsed]]  # every call to one judge, prompt by prompt


def open_journal(output_dir: str | Path) -> Journal:
    """The file, open for appending, by one process at a time. Raises what Journal raises."""
    return Journal(Path(output_dir) / NAME)


def read(output_dir: str | Path) -> list[dict]:
    """All whole lines; none where there is no file. Raises DataFault naming a line that is not a verdict."""
    path = Path(output_dir) / NAME
    lines = []
    for number, raw in enumerate(whole_lines(path), 1):
        try:
            line = json.loads(raw)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not line.keys() >= set(_NEEDED):
            raise DataFault(f"{path}:{number}: not a verdict")
        lines.append(line)
    return lines


def key_of(line: Mapping) -> tuple[str, str, int, int]:
    """The Call.key this line answers."""
    return tuple(line[name] for name in KEY)


def judge_of(line: Mapping) -> str:
    """The judge's name in tables: its model, and the mode where it is not the robust one."""
    return line["judge"] if line["mode"] == "robust" else f"{line['judge']} ({line['mode']})"


def parse(line: Mapping, call: Call) -> Parsed:
    """Read a line's reply again."""
    return replies.parse(line["reply"], len(call.order), call.answers, line["finish_reason"])


def by_judge(lines: Iterable[Mapping], calls: Iterable[Call]) -> dict[str, Verdicts]:
    """{judge: all calls of its mode, each with the first reading that has scores, else the last without}.

    calls: of every mode. Judges stand in the order of the lines. Raises DataFault for a line about no call of ours.
    """
    known = {call.key: call for call in calls}
    judges: dict[str, dict[tuple, Parsed]] = {}
    for number, line in enumerate(lines, 1):
        call, judge = known.get(key_of(line)), judge_of(line)
        if call is None or tuple(line["order"]) != call.order:
            raise DataFault(f"{NAME}:{number}: no prompt of items.json was asked in this way")
        if judge not in judges:
            judges[judge] = {key: Parsed(None, "no reply") for key, one in known.items() if one.mode == call.mode}
        if judges[judge][call.key].scores is None:
            judges[judge][call.key] = parse(line, call)
    return {judge: [(known[key], parsed) for key, parsed in read.items()] for judge, read in judges.items()}
