"""What the converters data/*/split.py share: finding the raw files, checking their texts, driving rows into arrays.

Not a command: run a converter, e.g. python data/firefly/split.py --input raw/firefly --output_dir data/firefly
"""

import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data.arrays import Array, make_folder, open_arrays, other_entries, write_report
from utils.errors import ArgumentFault, DataFault
from utils.files import sha256_file
from utils.strict_json import read_values


class Raw(NamedTuple):
    """A raw row: where it stands, as a message says it ("file:line") and as the report does ({"line": n})."""

    where: str
    place: dict
    value: dict


class Row(NamedTuple):
    """One training row and the output file it belongs to; history holds the turns (user, assistant) before it."""

    file: str
    instruction: str
    input: str
    output: str
    history: tuple[tuple[str, str], ...] = ()


class Dropped(NamedTuple):
    """A raw row that cannot be trained on."""

    reason: str


class Shortened(NamedTuple):
    """A part of a raw row that cannot be trained on; its Row stays without it."""

    reason: str


class Tally(NamedTuple):
    """What became of the raw rows. `dropped` and `shortened` are entries of the report: place and reason."""

    rows_in: int
    dropped: list[dict]
    shortened: list[dict]
    hashes: dict[str, str] = {}  # raw file -> SHA-256, where it was worked out already
    repeats: dict[str, int] = {}  # output file -> rows that repeat an earlier one of it; empty where not counted


Pieces = Callable[[str, dict], Iterable[Row | Dropped | Shortened]]  # (where, raw row) -> what becomes of it
Fill = Callable[[dict[str, Array]], Tally]


def find_sources(input: str, output_dir: str, names: Sequence[str]) -> list[Path]:
    """The raw file --input names, or those of `names` (also patterns) in the folder it names.

    Raises ArgumentFault naming the flag.
    """
    missing = [flag for flag, value in (("--input", input), ("--output_dir", output_dir)) if not value]
    if missing:
        raise ArgumentFault("; ".join(f"{flag} is missing" for flag in missing))
    path = Path(input)
    if not path.exists():
        raise ArgumentFault(f"--input {input}: does not exist")
    if path.is_file():
        return [path]
    sources = [found for name in names for found in sorted(path.glob(name)) if found.is_file()]
    if not sources:
        raise ArgumentFault(f"--input {input}: must be a raw file or a folder that holds {' or '.join(names)}")
    return sources


def read_objects(source: Path) -> Iterator[Raw]:
    """Every row of an array or of JSON Lines. Raises DataFault for a row that is no object, a file without rows."""
    number = last_line = 0
    for number, (line, value) in enumerate(read_values(source), 1):
        where, place = f"{source}:{line}", {"line": line}
        if line == last_line:  # an array on one line, or rows without a newline between them
            where, place = f"{where}: row {number}", {"line": line, "row": number}
        last_line = line
        yield Raw(where, place, as_object(where, value))
    if not number:
        raise DataFault(f"{source}: no rows")


def as_object(where: str, value: object) -> dict:
    """`value`, which must be an object. Raises DataFault."""
    if not isinstance(value, dict):
        raise DataFault(f"{where}: a row is {kind_of(value)}, must be an object")
    return value


def texts(where: str, row: dict, *keys: str, or_null: str = "") -> list[str]:
    """The texts under `keys`, byte for byte; null under the key `or_null` is "".

    Raises DataFault (file:line, key) for one that is missing or no text.
    """
    for key in keys:
        if key not in row:
            raise DataFault(f'{where}: "{key}" is missing (the row has {", ".join(map(repr, row)) or "no keys"})')
        if not isinstance(row[key], str) and not (key == or_null and row[key] is None):
            raise DataFault(f'{where}: "{key}" is {kind_of(row[key])}, must be text')
    return [row[key] or "" for key in keys]


def kind_of(value: object) -> str:
    """What a JSON value is, in words for a message."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def row_or_drop(file: str, instruction: str, input: str, output: str) -> Row | Dropped:
    """The row, or Dropped where training would refuse it: no instruction or no output but blanks."""
    for key, text in (("instruction", instruction), ("output", output)):
        if not text.strip():
            return Dropped(f"the {key} would be empty")
    return Row(file, instruction, input, output)


def dialogue(file: str, turns: Sequence[tuple[str, str]], end: str = "") -> Iterator[Row | Dropped | Shortened]:
    """A dialogue of turns (user, assistant) as one row, the last turn its instruction and output.

    It ends before the first turn in which a side says nothing: an empty answer would be trained, and what follows
    it answers to a turn that is not there. `end` is the reason why the raw dialogue gives no further turns.
    """
    whole = list(takewhile(lambda turn: all(text.strip() for text in turn), turns))
    if len(whole) < len(turns):
        side = "assistant" if turns[len(whole)][0].strip() else "user"
        end = f"turn {len(whole) + 1} of {len(turns)}: the {side} says nothing"
    if not whole:
        yield Dropped(end or "no turns")
        return
    if end:
        yield Shortened(f"{end}; the dialogue ends before it")
    *history, (instruction, output) = whole
    yield Row(file, instruction, "", output, tuple(history))


def fill_rows(raws: Iterable[Raw], pieces: Pieces, arrays: dict[str, Array]) -> Tally:
    """Write what becomes of each raw row: rows, or one Dropped; with a row there may be Shortened."""
    rows_in, dropped, shortened = 0, [], []
    seen: dict[str, set[int]] = {name: set() for name in arrays}
    for raw in tqdm(raws, desc="converting", unit=" rows", disable=None, leave=False):
        rows_in += 1
        for piece in pieces(raw.where, raw.value):
            if isinstance(piece, Row):
                arrays[piece.file].add(*piece[1:])
                seen[piece.file].add(hash(piece))
            else:
                (dropped if isinstance(piece, Dropped) else shortened).append({**raw.place, "reason": piece.reason})
    repeats = {name: array.rows - len(seen[name]) for name, array in arrays.items()}
    return Tally(rows_in, dropped, shortened, repeats=repeats)


def convert(set_name: str, sources: Sequence[Path], output_dir: str, names: Sequence[str], fill: Fill) -> None:
    """Turn raw files into the arrays `names` of output_dir, enter it into report.json there, print the counts.

    The arrays appear together, by rename, once every row is written; after a fault the earlier ones are as they were.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    folder = make_folder(output_dir, sources, names)
    others = other_entries(folder / "report.json", set_name, names)
    before = [_state(source) for source in sources]
    with open_arrays(folder, names) as arrays:
        tally = fill(arrays)
        if not any(array.rows for array in arrays.values()):
            place, *_, reason = tally.dropped[0].values()
            raise DataFault(f"{sources[0]}:{place}: every row would be dropped, the first because {reason}")
        hashes = tally.hashes or {_name(source, sources): sha256_file(source) for source in sources}
        for source, state in zip(sources, before):
            if _state(source) != state:
                raise DataFault(f"{source}: the file changed while it was read")
    rows_out = {name: array.rows for name, array in arrays.items()}
    entry = {"files": hashes, "rows_in": tally.rows_in, "rows_out": rows_out, "repeats": tally.repeats}
    entry |= {"dropped": tally.dropped, "shortened": tally.shortened}
    write_report(folder / "report.json", set_name, [*others, entry])
    _print_counts(", ".join(hashes), folder, rows_out, tally)


def _stop(number: int, frame: object) -> None:
    print(f"{Path(sys.argv[0]).name}: ended by signal {number}", file=sys.stderr)
    sys.exit(128 + number)  # an exception: the temporary files are taken away


def _name(source: Path, sources: Sequence[Path]) -> str:
    alone = [other.name for other in sources].count(source.name) == 1
    return source.name if alone else f"{source.parent.name}/{source.name}"


def _state(source: Path) -> tuple[int, ...]:
    """Changes with every write: the time of the last change of a file cannot be set back as its mtime can."""
    status = source.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _print_counts(sources: str, folder: Path, rows_out: dict[str, int], tally: Tally) -> None:
    left = f"{len(tally.dropped)} dropped, {len(tally.shortened)} shortened"
    print(f"{sources}: {tally.rows_in} rows in, {left} (where and why: {folder / 'report.json'})")
    for name, count in rows_out.items():
        repeats = tally.repeats.get(name)
        print(f"  {folder / name}: {count} rows" + (f", {repeats} of them repeat an earlier one" if repeats else ""))
