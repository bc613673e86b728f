"""Training and prompt rows: instruction, input, output (and history, reference), read and checked.

Every error names file, line and key, so that a broken row costs a second and not a GPU day.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from utils.errors import DataFault
from utils.strict_json import kind_of, read_values

KNOWN_KEYS = ("instruction", "input", "output", "history", "reference")
MOST_FAULTS = 100  # broken rows after which a file is not read on
Row = dict[str, Any]


def data_names(data_path: str) -> list[str]:
    """The files and Hub names of --data_path: separated by commas, unless the whole of it is one file's name."""
    return [data_path] if Path(data_path).is_file() else [name.strip() for name in data_path.split(",")]


def read_rows(path: str | Path, unused: Counter[str]) -> Iterator[Row]:
    """The training rows of a .json or .jsonl file: see training_rows."""
    return training_rows(path, read_values(path), unused)


def training_rows(path: str | Path, values: Iterable[tuple[int, Any]], unused: Counter[str]) -> Iterator[Row]:
    """Yield {"instruction": text, "input": text, "output": text, "history": [[text, text], …], "line": int} a value.

    values: (line, value). Keys that training does not know are counted in `unused`. A null or missing input is "", a
    missing history []. Anything else that is not text, an empty instruction or answer, and a file without rows is a
    DataFault (file:line, key, type): raised at the end, for the first row that is broken, with the lines of the others.
    """
    faults: list[str] = []
    line = 0
    try:
        for line, value in values:
            try:
                row = _training_row(f"{path}:{line}", value)
            except DataFault as fault:
                faults.append(str(fault))
                if len(faults) == MOST_FAULTS:
                    break
            else:
                unused.update(key[:80] for key in value if key not in KNOWN_KEYS)
                yield {**row, "line": line}
    except DataFault as fault:  # no JSON: nothing behind it can be read
        faults.append(str(fault))
    if faults:
        raise DataFault(_joined(path, faults))
    if not line:
        raise DataFault(f"{path}: no rows")


def _joined(path: str | Path, faults: list[str]) -> str:
    lines = [fault.removeprefix(f"{path}:").partition(":")[0] for fault in faults[1:]]
    more = "or more " if len(faults) == MOST_FAULTS else ""
    others = f" ({len(lines)} {more}other broken rows: lines {', '.join(lines[:5])}{', …' * (len(lines) > 5)})"
    return faults[0] + (others if lines else "")


def prompt_files(path: str | Path) -> list[Path]:
    """The files of prompts in a folder, by name; a file itself. Raises DataFault for a folder without any."""
    path = Path(path)
    files = sorted([*path.glob("*.json"), *path.glob("*.jsonl")]) if path.is_dir() else [path]
    if not files:
        raise DataFault(f"{path}: no prompts here (*.json, *.jsonl)")
    return files


def read_prompts(path: str | Path) -> list[Row]:
    """Prompts of a file as dicts: each a string or {"instruction", "input"?, "history"?, "reference"?}.

    Of a folder: those of its files, each with the "category" that its file's name is, where it has none of its own.
    Raises DataFault naming file, line and key.
    """
    if Path(path).is_dir():
        return [{"category": file.stem, **row} for file in prompt_files(path) for row in read_prompts(file)]
    prompts = []
    for line, value in read_values(path):
        row = {"instruction": value} if isinstance(value, str) else value
        prompts.append(_prompt_row(f"{path}:{line}", row, "text, or an object with instruction"))
    if not prompts:
        raise DataFault(f"{path}: no prompts")
    return prompts


def unread_keys(prompts: Iterable[Row]) -> Counter[str]:
    """The keys of read_prompts' rows that nothing reads, with the rows that have them: a mistyped one is among them."""
    return Counter(key for row in prompts for key in row if key not in (*KNOWN_KEYS, "category"))


def _training_row(where: str, value: object) -> Row:
    row = _prompt_row(where, value, "an object with instruction, input, output")
    output, history = text_of(where, row, "output"), row.get("history", [])
    if not output.strip():
        raise DataFault(f'{where}: "output" is empty')
    if any(not text.strip() for turn in history for text in turn):
        raise DataFault(f'{where}: a turn of "history" has an empty text')
    return {"instruction": row["instruction"], "input": row.get("input", ""), "output": output, "history": history}


def _prompt_row(where: str, value: object, form: str) -> Row:
    row = dict(as_object(where, value, form))
    for key in ("input", "history"):
        if row.get(key) is None:
            row.pop(key, None)
    if not text_of(where, row, "instruction").strip():
        raise DataFault(f'{where}: "instruction" is empty')
    if "input" in row:
        text_of(where, row, "input")
    history = row.get("history", [])
    if not isinstance(history, list):
        raise DataFault(f'{where}: "history" is {kind_of(history)}, must be a list of [user, assistant]')
    for turn in history:
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)):
            raise DataFault(f'{where}: a turn of "history" must be [user text, assistant text]')
    return row


def as_object(where: str, value: object, form: str = "an object") -> Row:
    """`value`, which must be an object. where: its file:line. Raises DataFault."""
    if not isinstance(value, dict):
        raise DataFault(f"{where}: a row is {kind_of(value)}, must be {form}")
    return value


def text_of(where: str, row: Row, key: str) -> str:
    """The text under `key`, byte for byte. Raises DataFault (file:line, key) where it is missing or no text."""
    if key not in row:
        keys = ", ".join(map(repr, row)) or "no keys"
        raise DataFault(f'{where}: "{key}" is missing (the row has {keys[:200]})')
    if not isinstance(row[key], str):
        raise DataFault(f'{where}: "{key}" is {kind_of(row[key])}, must be text')
    return row[key]
