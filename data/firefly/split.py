"""Firefly -> firefly-train-0.json … firefly-train-4.json, each with a fifth of every kind of task.

    python data/firefly/split.py --input raw/firefly-train-1.1M.jsonl --output_dir data/firefly

A stage trains on one file, so each must hold every kind in the proportion of the whole: the rows of a kind are cut,
in order, into five consecutive pieces of ceil(n / 5). The rows of a file keep the order of the raw file.

The raw file has 1.65 million rows. It is read twice, first to count the kinds, in parts and on all cores. The texts
of a row stay the JSON they are, unread, wherever it is certain that the strict reader would find nothing wrong with it.
"""

import hashlib
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.arrays import Array
from data.converting import (
    Dropped,
    Row,
    Tally,
    as_object,
    convert,
    fill_rows,
    find_sources,
    read_objects,
    row_or_drop,
    texts,
)
from data.parallel import PART, Part, cut_at_lines, in_order, in_turn, read_blocks
from utils import cli
from utils.errors import DataFault
from utils.strict_json import line_values

RAW = ("firefly-train-1.1M.jsonl",)
FILES = tuple(f"firefly-train-{index}.json" for index in range(5))


def main(input: str = "", output_dir: str = "") -> None:
    """Cut Firefly into five training files of equal proportions.

    --input: firefly-train-1.1M.jsonl, or the folder it lies in. --output_dir: where the arrays and report.json go.
    """
    (source,) = find_sources(input, output_dir, RAW)
    convert("firefly", [source], output_dir, FILES, partial(_fill, source))


def _fill(source: Path, arrays: dict[str, Array]) -> Tally:
    next(read_objects(source))  # refuses an empty file, another encoding, a Git LFS pointer
    with open(source, "rb") as file:
        is_array = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    return _fill_from_array(source, arrays) if is_array else _fill_from_lines(source, arrays)


def _places(size: int, placed: int = 0) -> Iterator[str]:
    """The output files of the rows of a kind of `size` rows, in order, behind those that are placed already."""
    piece = -(-size // len(FILES))
    return (FILES[row // piece] for row in range(placed, size))


def _next(places: dict[str, Iterator[str]], kind: str, source: Path) -> str:
    try:
        return next(places[kind])
    except (KeyError, StopIteration):  # there are more rows of it than were counted
        raise DataFault(f"{source}: the file changed while it was read") from None


# An array, read strictly in one process.


def _fill_from_array(source: Path, arrays: dict[str, Array]) -> Tally:
    sizes = Counter(_texts(raw.where, raw.value)[0] for raw in read_objects(source))
    places = {kind: _places(size) for kind, size in sizes.items()}

    def pieces(where: str, value: dict) -> Iterator[Row | Dropped]:
        kind, instruction, output = _texts(where, value)
        yield row_or_drop(_next(places, kind, source), instruction, "", output)

    return fill_rows(read_objects(source), pieces, arrays)


def _texts(where: str, value: object) -> list[str]:
    return texts(where, as_object(where, value), "kind", "input", "target")


# JSON Lines, as it is published: in parts, on all cores.


def _fill_from_lines(source: Path, arrays: dict[str, Array]) -> Tally:
    digest, counts, dropped = hashlib.sha256(), {}, []
    run = in_order if source.stat().st_size > PART else in_turn
    with (
        tempfile.TemporaryDirectory(dir=arrays[FILES[0]].path.parent, prefix=".firefly.") as folder,
        tqdm(desc=source.name, total=2 * source.stat().st_size, unit="B", unit_scale=True, disable=None) as bar,
    ):
        for part, count in run(partial(_count, source), cut_at_lines(source, digest.update)):
            counts[part] = count
            bar.update(part.length)
        sizes = sum(counts.values(), Counter())
        for (part, _), (pieces, left) in run(partial(_cut, source, folder, sizes), _with_placed(counts)):
            for name, rows in pieces.items():
                piece = _piece(folder, part, name)
                arrays[name].add_lines(piece.read_bytes(), rows)
                piece.unlink()
            dropped.extend(left)
            bar.update(part.length)
    return Tally(sizes.total(), dropped, [], {source.name: digest.hexdigest()})


def _with_placed(counts: dict[Part, Counter]) -> Iterator[tuple[Part, dict[str, int]]]:
    """Each part with how many rows of the kinds that it has are placed before it."""
    placed: Counter[str] = Counter()
    for part, count in counts.items():
        yield part, {kind: placed[kind] for kind in count}
        placed.update(count)


def _count(source: Path, part: Part) -> Counter[str]:
    """Rows a kind. Whether all else is right is found when they are cut."""
    counts: Counter[str] = Counter()
    for first_line, data in read_blocks(source, part):
        try:
            counts.update([row.kind for row in _KINDS(data)])
        except _REFUSED:
            counts.update(_texts(where, value)[0] for where, value in _strict_rows(source, first_line, data))
    return counts


def _cut(source: Path, folder: str, sizes: Counter, task: tuple[Part, dict]) -> tuple[dict[str, int], list[dict]]:
    """Write the part's rows into a piece for each output file; how many they are, and what was dropped."""
    part, placed = task
    places = {kind: _places(sizes[kind], count) for kind, count in placed.items()}
    rows, dropped = {name: [] for name in FILES}, []
    for line, kind, row in _read(source, part):
        name = _next(places, kind, source)
        if isinstance(row, Dropped):
            dropped.append({"line": line, "reason": row.reason})
        else:
            rows[name].append(row)
    pieces = {name: len(lines) for name, lines in rows.items() if lines}
    for name in pieces:
        _piece(folder, part, name).write_bytes(b",\n".join(rows[name]))
    return pieces, dropped


def _piece(folder: str, part: Part, name: str) -> Path:
    return Path(folder, f"{part.start}-{name}")


def _read(source: Path, part: Part) -> Iterator[tuple[int, str, bytes | Dropped]]:
    """(line, kind, output row) of a part's rows. What the quick way leaves open is for the strict reader to say."""
    for first_line, data in read_blocks(source, part):
        quick = _quick if _is_utf8(data) else _unknown
        for number, line in enumerate(data.split(b"\n"), first_line):
            if found := quick(line):
                yield number, *found
                continue
            for where, value in _strict_rows(source, number, line):
                kind, instruction, output = _texts(where, value)
                row = row_or_drop("", instruction, "", output)
                yield number, kind, row if isinstance(row, Dropped) else _row(_TO_JSON(instruction), _TO_JSON(output))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _strict_rows(source: Path, first_line: int, data: bytes) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(data.split(b"\n"), first_line):
        for value in line_values(source, number, line):
            yield f"{source}:{number}", value


class _Kind(msgspec.Struct, gc=False):
    kind: str


class _Line(_Kind, gc=False, forbid_unknown_fields=True):
    input: msgspec.Raw
    target: msgspec.Raw


_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_KINDS = msgspec.json.Decoder(_Kind).decode_lines
_LINE = msgspec.json.Decoder(_Line).decode
_TEXT = msgspec.json.Decoder(str).decode
_TO_JSON = msgspec.json.Encoder().encode
_NEEDLESS = re.compile(rb"\\[u/]").search  # "\u4e0b", "\/": read, and written as other characters are
_QUOTE = ord('"')
_LINE_BYTES = len('{"kind":"","input":,"target":}') + 8  # with some blanks; a second key takes 9 or more: "kind":0,
_BLANK = frozenset(b'"\\ \xc2\xe1\xe2\xe3')  # begins a text of blanks: its end, an escape, a blank or a part of one


def _row(instruction: bytes | msgspec.Raw, output: bytes) -> bytes:
    return b"".join((b'{"instruction": ', instruction, b', "input": "", "output": ', output, b"}"))


_ROW_BYTES = len(_row(b"", b""))


def _unknown(line: bytes) -> None:
    return None


def _quick(line: bytes) -> tuple[str, bytes] | None:
    """The kind and the output row of a line of valid UTF-8, its texts as they stand there.

    None unless it is certain that the strict reader would say the same: input and target are texts, not blank and
    without needless escapes (msgspec refuses wrong escapes, half characters and control characters), and around them
    there is no room for a key that stands twice.
    """
    try:
        found = _LINE(line)
    except _REFUSED:
        return None
    target = bytes(found.target)
    row = _row(found.input, target)
    texts_bytes = len(row) - _ROW_BYTES + len(found.kind.encode())
    if len(line) - texts_bytes > _LINE_BYTES or row[16] != _QUOTE or target[0] != _QUOTE:
        return None
    if b"\\" in line and _NEEDLESS(line):
        return None
    if row[17] in _BLANK and not _TEXT(found.input).strip():
        return None
    if target[1] in _BLANK and not _TEXT(target).strip():
        return None
    return found.kind, row


if __name__ == "__main__":
    cli.run(main)
