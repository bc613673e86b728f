"""What the converters data/*/split.py share: finding raw files, checking their texts, writing arrays and the report.

Not a command: run a converter, e.g. python data/firefly/split.py --input data/raw/firefly --output_dir data/firefly
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from utils.errors import ArgumentFault, DataFault, EnvironmentFault
from utils.files import flush_folder, sha256_file, write_json
from utils.rows import as_object, text_of
from utils.strict_json import read_values

REPORT = "report.json"


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


class Array:
    """A JSON array on its way into `file`; row n stands on line n + 1, characters as written."""

    def __init__(self, file: BinaryIO):
        self.file, self.rows = file, 0

    def add(self, row: Row) -> None:
        """Append a row; its history only where it has one."""
        value: dict[str, object] = {"instruction": row.instruction, "input": row.input, "output": row.output}
        if row.history:
            value["history"] = row.history
        self.add_lines(json.dumps(value, ensure_ascii=False).encode(), 1)

    def add_lines(self, lines: bytes, rows: int) -> None:
        """Append rows that are JSON already, each on its line, with a comma at the end of every line but the last."""
        self.file.write(b",\n" if self.rows else b"[\n")
        self.file.write(lines)
        self.rows += rows


Piece = Row | Dropped | Shortened
Pieces = Callable[[str, dict], Iterable[Piece]]  # (where, raw row) -> what becomes of it
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


def texts(where: str, row: dict, *keys: str, or_null: str = "") -> list[str]:
    """The texts under `keys`, byte for byte; null under the key `or_null` is "".

    Raises DataFault (file:line, key) for one that is missing or no text.
    """
    return ["" if key == or_null and row.get(key, "") is None else text_of(where, row, key) for key in keys]


def row_or_drop(file: str, instruction: str, input: str, output: str) -> Row | Dropped:
    """The row, or Dropped where training would refuse it: no instruction or no output but blanks."""
    for key, text in (("instruction", instruction), ("output", output)):
        if not text.strip():
            return Dropped(f"the {key} would be empty")
    return Row(file, instruction, input, output)


def dialogue(file: str, turns: Sequence[tuple[str, str]], end: str = "") -> Iterator[Piece]:
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
    rows_in = 0
    left_out: dict[type, list[dict]] = {Dropped: [], Shortened: []}
    seen: dict[str, set[int]] = {name: set() for name in arrays}
    for raw in tqdm(raws, desc="converting", unit=" rows", disable=None, leave=False):
        rows_in += 1
        for piece in pieces(raw.where, raw.value):
            if isinstance(piece, Row):
                arrays[piece.file].add(piece)
                seen[piece.file].add(hash(piece))
            else:
                left_out[type(piece)].append({**raw.place, "reason": piece.reason})
    repeats = {name: array.rows - len(seen[name]) for name, array in arrays.items()}
    return Tally(rows_in, left_out[Dropped], left_out[Shortened], repeats=repeats)


def convert(set_name: str, sources: Sequence[Path], output_dir: str, names: Sequence[str], fill: Fill) -> None:
    """Turn raw files into the arrays `names` of output_dir, enter it into report.json there, print the counts.

    The arrays appear together, by rename, once every row is written; after a fault the earlier ones are as they were.
    Raises DataFault where no row is left, and for a raw file that changes meanwhile.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    folder = _make_folder(output_dir, sources, names)
    others = _other_entries(folder / REPORT, set_name, names)
    before = [_state(source) for source in sources]
    with _open_arrays(folder, names) as arrays:
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
    write_json(folder / REPORT, {"set": set_name, "inputs": [*others, entry]})
    left_out = f"{len(tally.dropped)} dropped, {len(tally.shortened)} shortened (where and why: {folder / REPORT})"
    print(f"{', '.join(hashes)}: {tally.rows_in} rows in, {left_out}")
    for name, count in rows_out.items():
        repeats = tally.repeats.get(name)
        print(f"  {folder / name}: {count} rows" + (f", {repeats} of them repeat an earlier one" if repeats else ""))


def _stop(number: int, frame: object) -> None:
    print(f"{Path(sys.argv[0]).name}: ended by signal {number}", file=sys.stderr)
    sys.exit(128 + number)  # an exception: the temporary files are taken away


def _make_folder(output_dir: str, sources: Sequence[Path], names: Iterable[str]) -> Path:
    """The output folder, made if need be. Raises ArgumentFault if it is a file or an output would replace an input."""
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ArgumentFault(f"--output_dir {output_dir}: is a file or lies in one, must be a folder") from None
    except FileNotFoundError as error:  # e.g. in /proc
        raise EnvironmentFault(f"--output_dir {output_dir}: {error.filename} cannot be made") from None
    outputs = {(folder / name).resolve() for name in (*names, REPORT)}
    for source in sources:
        if source.resolve() in outputs:
            raise ArgumentFault(f"--output_dir {output_dir}: its {source.name} is the input and would be overwritten")
    return folder


def _other_entries(report: Path, set_name: str, names: Iterable[str]) -> list[dict]:
    """What report.json already says of this set's other outputs (COIG's files may come in several runs).

    Raises ArgumentFault where the report is not of this set: two sets in one folder would hide each other's.
    """
    if not report.exists():
        return []
    try:
        known = json.loads(report.read_text("utf-8"))
        if known["set"] != set_name:
            raise ValueError(known["set"])
        return [entry for entry in known["inputs"] if not set(entry["rows_out"]) & set(names)]
    except (ValueError, TypeError, KeyError):
        reason = f"its {report.name} is not of {set_name}, give each set its own folder"
        raise ArgumentFault(f"--output_dir {report.parent}: {reason}") from None


@contextlib.contextmanager
def _open_arrays(folder: Path, names: Iterable[str]) -> Iterator[dict[str, Array]]:
    """Arrays by name. All are complete on the disk before the first is renamed; after a fault none appears."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".converting-") as staging:
        with contextlib.ExitStack() as files:
            arrays = {name: Array(files.enter_context(open(Path(staging, name), "wb"))) for name in names}
            yield arrays
            for array in arrays.values():
                array.file.write(b"\n]\n" if array.rows else b"[\n]\n")
        flush_folder(Path(staging))
        for name in names:
            os.replace(Path(staging, name), folder / name)


def _name(source: Path, sources: Sequence[Path]) -> str:
    alone = [other.name for other in sources].count(source.name) == 1
    return source.name if alone else f"{source.parent.name}/{source.name}"


def _state(source: Path) -> tuple[int, ...]:
    """Changes with every write: the time of the last change of a file cannot be set back as its mtime can."""
    status = source.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
