"""verdicts.jsonl: every reply of every judge, raw, one line each, on the disk before the next is asked for.

A line: judge (the model asked for), mode, category, number, rotation, order (the systems, System1 first), attempt,
temperature, base_url, model (the one that answered), date, marker, prompt_sha256, finish_reason, tokens, reply; and
how it was read then: scores, problem. Whoever needs the scores parses the reply again.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from utils import journal, replies
from utils.errors import DataFault
from utils.judging import Call
from utils.replies import Parsed

NAME = "verdicts.jsonl"
Key = tuple[str, str, int, int]
_KEYS = ("judge", "mode", "category", "number", "rotation", "order", "reply", "finish_reason")


class Journal(journal.Journal):
    """The file, open for appending, by one process at a time.

    lines: what is there. Raises EnvironmentFault while another process writes it, DataFault for a line not of ours.
    """

    def __init__(self, output_dir: str | Path):
        super().__init__(Path(output_dir) / NAME)
        self.lines = read(output_dir)

    def append(self, line: Mapping[str, object]) -> None:
        """Write one line and wait until the disk has it."""
        super().append(line)
        self.lines.append(line)


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


def mode_of(verdicts: Mapping[Key, Parsed]) -> str:
    """The mode of one judge's verdicts."""
    return next(iter(verdicts))[0]


def parse(line: Mapping, call: Call) -> Parsed:
    """Read a line's reply again."""
    return replies.parse(line["reply"], len(call.order), call.answers, line["finish_reason"])


def by_judge(lines: Iterable[Mapping], calls: Iterable[Call]) -> dict[str, dict[Key, Parsed]]:
    """{judge: {call key: its first verdict with scores, else its last without}}, judges in the order of the file.

    Raises DataFault for a line about no call of ours.
    """
    known = {call.key: call for call in calls}
    judges: dict[str, dict[Key, Parsed]] = {}
    for number, line in enumerate(lines, 1):
        call = known.get(key_of(line))
        if call is None or tuple(line["order"]) != call.order:
            raise DataFault(f"{NAME}:{number}: no prompt of items.json was asked in this way")
        verdicts = judges.setdefault(judge_of(line), {})
        before = verdicts.get(call.key)
        if before is None or before.scores is None:
            verdicts[call.key] = parse(line, call)
    return judges
