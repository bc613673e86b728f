"""Firefly -> firefly-train-0.json … firefly-train-4.json, each with a fifth of every kind of task.

    python data/firefly/split.py --input data/raw/firefly-train-1.1M.jsonl --output_dir data/firefly

A stage trains on one file, so each must hold every kind in the proportion of the whole: the rows of a kind are cut,
in order, into five consecutive pieces of ceil(n / 5). The rows of a file keep the order of the raw file.

The raw file has 1.65 million rows. It is read twice, first to count the kinds, in parts and on all cores. The texts
of a row stay the JSON they are, unread, wherever it is certain that the strict reader would find nothing wrong with it.
"""

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.converting import (
    Array,
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
from data.parts import Part, cut_at_lines, over_parts, read_blocks
from utils import cli
from utils.errors import DataFault
from utils.strict_json import is_array, line_values

RAW = ("firefly-train-1.1M.jsonl",)
FILES = tuple(f"firefly-train-{index}.json" for index in range(5))


def main(input: str = "", output_dir: str = "") -> None:
    """Cut Firefly into five training files of equal proportions.

    --input: firefly-train-1.1M.jsonl, or the folder it lies in. --output_dir: where the arrays and report.json go.
    """
    (source,) = find_sources(input, output_dir, RAW)
    convert("firefly", [source], output_dir, FILES, partial(_fill, source))


def _fill(source: Path, arrays: dict[str, Array]) -> Tally:
    return (_fill_from_array if is_array(source) else _fill_from_lines)(source, arrays)


def _places(size: int, placed: int = 0) -> Iterator[str]:
    """The output files of the rows of a kind of `size` rows, in order, behind those that are placed already."""
    piece = -(-size // len(FILES))
    return (FILES[row // piece] for row in range(placed, size))


def _next(places: dict[str, Iterator[str]], kinds: list[str], source: Path) -> list[str]:
    try:
        return [next(places[kind]) for kind in kinds]
    except (KeyError, StopIteration):  # there are more rows of a kind than were counted
        raise DataFault(f"{source}: the file changed while it was read") from None


# An array, read strictly in one process.


def _fill_from_array(source: Path, arrays: dict[str, Array]) -> Tally:
    sizes = Counter(_texts(raw.where, raw.value)[0] for raw in read_objects(source))
    places = {kind: _places(size) for kind, size in sizes.items()}

    def pieces(where: str, value: dict) -> Iterator[Row | Dropped]:
        kind, instruction, output = _texts(where, value)
        (file,) = _next(places, [kind], source)
        yield row_or_drop(file, instruction, "", output)

    return fill_rows(read_objects(source), pieces, arrays)


def _texts(where: str, value: object) -> list[str]:
    return texts(where, as_object(where, value), "kind", "input", "target")


# JSON Lines, as it is published: in parts, on all cores.


def _fill_from_lines(source: Path, arrays: dict[str, Array]) -> Tally:
    digest, counts, dropped = hashlib.sha256(), dict[Part, Counter](), list[dict]()
    size = source.stat().st_size
    with tqdm(desc=source.name, total=2 * size, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for part, count in over_parts(partial(_count, source), cut_at_lines(source, digest.update), size):
            counts[part] = count
            bar.update(part.length)
        sizes: Counter[str] = sum(counts.values(), Counter())
        for part, pieces, left in over_parts(partial(_cut, source, sizes), _with_placed(counts), size):
            for name, (rows, lines) in pieces.items():
                arrays[name].add_lines(lines, rows)
            dropped.extend(left)
            bar.update(part.length)
    return Tally(sizes.total(), dropped, [], {source.name: digest.hexdigest()})


def _with_placed(counts: dict[Part, Counter]) -> Iterator[tuple[Part, dict[str, int]]]:
    """Each part with how many rows of the kinds that it has are placed before it."""
    placed: Counter[str] = Counter()
    for part, count in counts.items():
        yield part, {kind: placed[kind] for kind in count}
        placed.update(count)


def _count(source: Path, part: Part) -> tuple[Part, Counter[str]]:
    """The part and its rows a kind. Whether all else is right is found when they are cut."""
    counts: Counter[str] = Counter()
    try:
        for data in read_blocks(source, part):
            counts.update([row.kind for row in _KINDS(data)])
    except _REFUSED:
        lines = b"".join(read_blocks(source, part))
        return part, Counter(kind for _, kind, *_ in _strict_rows(source, part.line, lines))
    return part, counts


def _cut(source: Path, sizes: Counter, task: tuple[Part, dict]) -> tuple[Part, dict, list[dict]]:
    """The part, its rows for each output file, {name: (how many, their lines)}, and what was dropped."""
    part, placed = task
    places = {kind: _places(sizes[kind], count) for kind, count in placed.items()}
    pieces: dict[str, list[bytes]] = {name: [] for name in FILES}
    dropped: list[dict] = []
    for kinds, rows in _read(source, part):
        for name, row in zip(_next(places, kinds, source), rows):
            (dropped if isinstance(row, dict) else pieces[name]).append(row)
    return part, {name: (len(rows), b",\n".join(rows)) for name, rows in pieces.items() if rows}, dropped


def _read(source: Path, part: Part) -> Iterator[tuple[list[str], list]]:
    """(kinds, output rows) of a part; in place of a row that is dropped, its entry in the report.

    What the quick way leaves open is for the strict reader to say.
    """
    number = part.line
    for data in read_blocks(source, part):
        if found := _quick(data):
            yield found
            number += len(found[0])
            continue
        lines = data.split(b"\n")
        for place, line in enumerate(lines, number):
            yield _quick(line) or _strict(source, place, line)
        number += len(lines) - 1


def _strict(source: Path, number: int, line: bytes) -> tuple[list[str], list]:
    kinds: list[str] = []
    rows: list[bytes | dict] = []
    for _, kind, instruction, output in _strict_rows(source, number, line):
        row = row_or_drop("", instruction, "", output)
        kinds.append(kind)
        if isinstance(row, Dropped):
            rows.append({"line": number, "reason": row.reason})
        else:
            rows.append(_row(_TO_JSON(instruction), _TO_JSON(output)))
    return kinds, rows


def _strict_rows(source: Path, first_line: int, data: bytes) -> Iterator[tuple[int, str, str, str]]:
    """(line, kind, instruction, output) of the rows on these lines."""
    for number, line in enumerate(data.split(b"\n"), first_line):
        for value in line_values(source, number, line):
            kind, instruction, output = _texts(f"{source}:{number}", value)
            yield number, kind, instruction, output


class _Kind(msgspec.Struct, gc=False):
    kind: str


class _Line(_Kind, gc=False, forbid_unknown_fields=True):
    input: msgspec.Raw
    target: msgspec.Raw


_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_KINDS = msgspec.json.Decoder(_Kind).decode_lines
_LINES = msgspec.json.Decoder(_Line).decode_lines
_TO_JSON = msgspec.json.Encoder().encode
_NEEDLESS = re.compile(rb"\\[u/]").search  # "\u4e0b", "\/": read, and written as other characters are
_BLANKS = rb'(?:\\.|\xc2.|\xe1..|\xe2..|\xe3\x80\x80| )*+"'  # to the end of a text that may be of blanks alone
_FILLED = re.compile(b'"(?!' + _BLANKS + b")").match
_FORMS = (  # of a line, as json.dumps writes it
    (b'{"kind": "', b'", "input": ', b', "target": ', b"}\n"),
    (b'{"kind":"', b'","input":', b',"target":', b"}\n"),
)
_ROW = (b'{"instruction": ', b', "input": "", "output": ', b"}")


def _row(instruction: bytes | msgspec.Raw, output: bytes | msgspec.Raw) -> bytes:
    return b"".join((_ROW[0], instruction, _ROW[1], output, _ROW[2]))


def _quick(data: bytes) -> tuple[list[str], list[bytes]] | None:
    """The kinds and the output rows of the lines of `data`, the texts as they stand there.

    None unless it is certain that the strict reader would say the same: UTF-8, every line byte for byte as json.dumps
    writes a row, input and target texts, not blank and without needless escapes (msgspec refuses wrong escapes, half
    characters and control characters).
    """
    opening, asked, answered, closing = _FORMS[data.startswith(_FORMS[1][0])]
    try:
        data.decode()
        found = _LINES(data)
    except _REFUSED:
        return None
    kinds = [row.kind for row in found]
    names = {kind: opening + kind.encode() + asked for kind in set(kinds)}
    lines = b"".join([b"".join((names[row.kind], row.input, answered, row.target, closing)) for row in found])
    if lines.removesuffix(b"\n") != data.removesuffix(b"\n") or _NEEDLESS(data):
        return None
    if not all(map(_FILLED, [text for row in found for text in (row.input, row.target)])):
        return None
    return kinds, [_row(row.input, row.target) for row in found]


if __name__ == "__main__":
    cli.run(main)
