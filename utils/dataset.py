"""Rows into encoded Arrow tables: read, checked, mixed, split into training and validation, tokenized.

Rows and tokens are memory-mapped files in the cache, found by content: a file is read and tokenized once, whatever
its size, and a file that has changed is another file. At no time are more than some thousand rows Python objects.
"""

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy
import pyarrow
from datasets.table import MemoryMappedTable
from tqdm import tqdm

from utils import cache, parallel
from utils.encode import IGNORED, encode_rows
from utils.errors import DataFault, EnvironmentFault, ModelFault, first_line
from utils.files import sha256_file
from utils.prompter import Prompter
from utils.rows import Row, data_names, read_rows, training_rows

CHUNK = 500  # rows written, or tokenized by one process, at a time
COUNTS = ("rows", "truncated", "masked", "tokens", "supervised", "answers", "ended")
_TEXT, _NUMBER = pyarrow.large_string(), pyarrow.int32()
_ROW = pyarrow.schema(
    dict.fromkeys(("instruction", "input", "output"), _TEXT)
    | {"history": pyarrow.list_(pyarrow.list_(_TEXT)), "line": pyarrow.int64()}
)
_ENCODED = pyarrow.schema(
    dict.fromkeys(("input_ids", "labels"), pyarrow.list_(_NUMBER))
    | dict.fromkeys(("length", "whole", "supervised", "line", "file"), _NUMBER)
)
Read = Callable[[Counter[str]], Iterable[Row]]  # the rows; counts the keys it does not know


def load_rows(data_path: str, data_mix: Sequence[str] = (), seed: int = 0) -> tuple[datasets.Dataset, list[dict]]:
    """The rows of the .json and .jsonl files and Hub data sets that data_path names, in their order, and their origins.

    Names are separated by commas; an origin is {"path", "sha256", "rows"[, "share"]}. Columns: instruction, input,
    output, history and line (see utils.rows), and file, the number of the origin. With data_mix, the shares of the
    files in the whole, as many rows as there are in these shares without one twice are drawn with the seed. Raises
    DataFault for a broken row, EnvironmentFault when the Hub cannot be reached.
    """
    tables, origins = [], []
    for number, name in enumerate(data_names(data_path)):
        origin, read = _from_file(name) if Path(name).is_file() else _from_hub(name)
        table = _checked(name, origin["sha256"], read)
        numbers: numpy.ndarray = numpy.full(len(table), number, numpy.int16)
        fingerprint = cache.digest(rows=table._fingerprint, file=number)
        tables.append(table.add_column("file", numbers, new_fingerprint=fingerprint))
        origins.append({**origin, "rows": len(table)})
    if data_mix:
        shares = [float(share) for share in data_mix]
        tables = _mix(tables, shares, seed)
        origins = [{**origin, "share": share} for origin, share in zip(origins, shares, strict=True)]
    return join(*tables), origins


def _from_file(name: str) -> tuple[dict, Read]:
    path = Path(name)
    sha256 = sha256_file(path)

    def read(unused: Counter[str]) -> Iterator[Row]:
        yield from read_rows(name, unused)
        if (now := sha256_file(path)) != sha256:
            raise ModelFault(f"{name} was changed while it was read: {sha256[:12]} -> {now[:12]}")

    return {"path": str(path.resolve()), "sha256": sha256}, read


def _from_hub(name: str) -> tuple[dict, Read]:
    try:
        table = datasets.load_dataset(name, split="train")
    except (ConnectionError, OSError) as error:
        raise EnvironmentFault(f"--data_path: {name} is no file here, and the Hub cannot be reached") from error
    except (ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise DataFault(f"--data_path: {name}: {first_line(error)}") from None
    return {"path": name, "sha256": table._fingerprint}, partial(training_rows, name, enumerate(table, 1))


def _checked(name: str, sha256: str, read: Read) -> datasets.Dataset:
    """The rows that `read` gives, from the cache where this content has been read before."""

    def build(target: Path) -> dict:
        unused: Counter[str] = Counter()
        rows = iter(tqdm(read(unused), desc=f"reading {name}", unit="row", leave=False, disable=None))
        chunks = iter(lambda: list(islice(rows, CHUNK)), [])
        _write(target, _ROW, (pyarrow.RecordBatch.from_pylist(chunk, _ROW) for chunk in chunks))
        return {"unused": unused.most_common(5), "others": max(0, len(unused) - 5)}

    table, info = _cached(cache.digest(rows=sha256, code=_code("rows", "strict_json", "dataset")), build)
    for key, count in info["unused"]:
        print(f'{name}: the key "{key}" is not used ({count} rows)')
    if info["others"]:
        print(f"{name}: nor are {info['others']} other keys")
    return table


def _mix(tables: list[datasets.Dataset], shares: list[float], seed: int) -> list[datasets.Dataset]:
    whole = min(len(table) / share for table, share in zip(tables, shares, strict=True))
    draw = random.Random(seed)
    mixed = []
    for table, share in zip(tables, shares, strict=True):
        wanted = min(len(table), round(whole * share))
        numbers = sorted(draw.sample(range(len(table)), wanted))
        mixed.append(choose(table, numbers, mix=shares, seed=seed))
    if not all(map(len, mixed)):
        raise DataFault(f"--data_mix: {shares} leaves no row of a file (rows: {[len(table) for table in tables]})")
    return mixed


def join(*tables: datasets.Dataset) -> datasets.Dataset:
    """The rows of all tables in their order."""
    filled = [table for table in tables if len(table)] or [tables[0]]
    if len(filled) == 1:
        return filled[0]
    joined = datasets.concatenate_datasets(filled)
    joined._fingerprint = cache.digest(joined=[table._fingerprint for table in filled])
    return joined


def split(rows: datasets.Dataset, val_set_size: int, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(training rows, validation rows): val_set_size rows drawn with the seed, both in the file's order."""
    held_out = set(random.Random(seed).sample(range(len(rows)), val_set_size))
    train = [index for index in range(len(rows)) if index not in held_out]
    part = {"of": val_set_size, "seed": seed}
    return choose(rows, train, part="train", **part), choose(rows, sorted(held_out), part="held out", **part)


def choose(rows: datasets.Dataset, numbers: Sequence[int], **why: object) -> datasets.Dataset:
    """The rows of these numbers in this order. why: what JSON can write and the numbers follow from, for the cache."""
    fingerprint = cache.digest(rows=rows._fingerprint, **why)
    return rows.select(numbers, keep_in_memory=True, new_fingerprint=fingerprint)


def encode(
    rows: datasets.Dataset,
    tokenizer: Any,
    prompter: Prompter,
    cutoff_len: int,
    train_on_inputs: bool,
    last_turn_only: bool = False,
) -> tuple[datasets.Dataset, dict[str, int]]:
    """Encoded rows and counts {"rows", "truncated", "masked", "tokens", "supervised", "answers", "ended"}.

    Columns: input_ids and labels (int lists), length (of them), whole (tokens before the cutoff), supervised (labels
    that a token is predicted for), line and file (see load_rows). Rows whose supervised part lies wholly behind the
    cutoff teach nothing: they are left out and counted as masked. Raises DataFault when no row is left.
    """
    settings = dict[str, Any](cutoff_len=cutoff_len, train_on_inputs=train_on_inputs, last_turn_only=last_turn_only)
    work = partial(_encode_chunk, rows, partial(encode_rows, tokenizer, prompter, **settings))

    def build(target: Path) -> dict:
        total: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        _write(target, _ENCODED, _encoded_batches(work, len(rows), total))
        if len(rows) and not total["rows"]:
            raise DataFault(f"--cutoff_len {cutoff_len} leaves no answer of any of the {len(rows)} rows to learn from")
        return dict(total)

    made_from = {"rows": rows._fingerprint, "template": prompter.sha256, "tokenizer": _hash_of(tokenizer), **settings}
    return _cached(cache.digest(**made_from, code=_code("encode", "prompter", "dataset")), build)


def _encoded_batches(work: Callable, rows: int, total: Counter[str]) -> Iterator[pyarrow.RecordBatch]:
    starts = range(0, rows, CHUNK)
    processes = min(parallel.cores(), len(starts) // 2)
    with tqdm(total=rows, desc="tokenizing", unit="row", leave=False, disable=None) as bar:
        for batch, counts in parallel.in_order(work, starts, processes):
            total.update(counts)
            bar.update(counts["rows"] + counts["masked"])
            yield batch


def _encode_chunk(rows: datasets.Dataset, encode: Callable, start: int) -> tuple[pyarrow.RecordBatch, Counter[str]]:
    stop = min(start + CHUNK, len(rows))
    counts: Counter[str] = Counter()
    kept = []
    chunk = rows.with_format("arrow")[start:stop].to_pylist()
    for source, row in zip(chunk, encode(chunk), strict=True):
        supervised = sum(label != IGNORED for label in row["labels"][1:])
        counts["truncated"] += row["whole"] > len(row["input_ids"])
        counts["answers"] += row["answers"]
        counts["ended"] += row["ended"]
        if not supervised:
            counts["masked"] += 1
            continue
        counts.update(rows=1, tokens=len(row["input_ids"]), supervised=supervised)
        place = {"line": source["line"], "file": source["file"]}
        kept.append({**row, **place, "length": len(row["input_ids"]), "supervised": supervised})
    return pyarrow.RecordBatch.from_pylist(kept, _ENCODED), counts


def _hash_of(tokenizer: Any) -> str:
    """Of what it writes when it is saved, but for chat templates: its pieces and settings; and of its library."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).iterdir() if path.is_file() and path.suffix != ".jinja")
        hashes = [(path.name, sha256_file(path)) for path in files]
    return cache.digest(files=hashes, libraries=[version(name) for name in ("tokenizers", "transformers")])


def _code(*rooms: str) -> list[str]:
    """What a table's content depends on besides its data: the rooms of this library that make it."""
    return [sha256_file(Path(__file__).with_name(f"{room}.py")) for room in rooms]


def _cached(name: str, build: Callable[[Path], dict]) -> tuple[datasets.Dataset, dict]:
    path, info = cache.table(name, build)
    return datasets.Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=name), info


def _write(target: Path, schema: pyarrow.Schema, batches: Iterable[pyarrow.RecordBatch]) -> None:
    with pyarrow.ipc.new_stream(str(target), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
