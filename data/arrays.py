"""Writing the converters' JSON arrays, one row a line, and the report beside them, so that none is seen half-written.

Not a command: data/converting.py uses it for every data/*/split.py.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from utils.errors import ArgumentFault, EnvironmentFault
from utils.files import write_json


def make_folder(output_dir: str, sources: Sequence[Path], names: Iterable[str]) -> Path:
    """The output folder, made if need be. Raises ArgumentFault if it is a file or an output would replace an input."""
    folder = Path(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ArgumentFault(f"--output_dir {output_dir}: is a file or lies in one, must be a folder") from None
    except FileNotFoundError as error:  # e.g. in /proc
        raise EnvironmentFault(f"--output_dir {output_dir}: {error.filename} cannot be made") from None
    outputs = {(folder / name).resolve() for name in (*names, "report.json")}
    for source in sources:
        if source.resolve() in outputs:
            raise ArgumentFault(f"--output_dir {output_dir}: its {source.name} is the input and would be overwritten")
    return folder


class Array:
    """A JSON array on its way into `path`; row n stands on line n + 1, characters as written."""

    def __init__(self, path: Path):
        self.path, self.rows = path, 0
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        self.temporary = Path(temporary)
        self.file = os.fdopen(handle, "wb")

    def add(self, instruction: str, input: str, output: str, history: Sequence[tuple[str, str]]) -> None:
        """Append a row; its history only where it has one."""
        row = {"instruction": instruction, "input": input, "output": output}
        if history:
            row["history"] = history
        self.add_lines(json.dumps(row, ensure_ascii=False).encode(), 1)

    def add_lines(self, lines: bytes, rows: int) -> None:
        """Append rows that are JSON already, each on its line, with a comma at the end of every line but the last."""
        self.file.write(b",\n" if self.rows else b"[\n")
        self.file.write(lines)
        self.rows += rows

    def finish(self) -> None:
        """Close the array and bring it to the disk."""
        self.file.write(b"\n]\n" if self.rows else b"[\n]\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.temporary.chmod(0o644)  # mkstemp makes it readable for its owner only

    def discard(self) -> None:
        """Take the temporary file away, where it is still there."""
        self.temporary.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self.file.close()


@contextlib.contextmanager
def open_arrays(folder: Path, names: Iterable[str]) -> Iterator[dict[str, Array]]:
    """Arrays by name. All are complete on the disk before the first is renamed; after a fault none appears."""
    with contextlib.ExitStack() as stack:
        arrays = {}
        for name in names:
            arrays[name] = Array(folder / name)
            stack.callback(arrays[name].discard)
        yield arrays
        for array in arrays.values():
            array.finish()
        for array in arrays.values():
            os.replace(array.temporary, array.path)


def other_entries(report: Path, set_name: str, names: Iterable[str]) -> list[dict]:
    """What report.json already says of this set's other outputs (COIG's files may come in several runs).

    Raises ArgumentFault where the report is not of this set: two sets in one folder would hide each other's.
    """
    if not report.exists():
        return []
    try:
        known = json.loads(report.read_text("utf-8"))
        entries = known["inputs"] if known["set"] == set_name else None
        return [entry for entry in entries if not set(entry["rows_out"]) & set(names)]
    except (ValueError, TypeError, KeyError):
        reason = f"its {report.name} is not of {set_name}, give each set its own folder"
        raise ArgumentFault(f"--output_dir {report.parent}: {reason}") from None


def write_report(report: Path, set_name: str, entries: list[dict]) -> None:
    """The report: for each input its files (SHA-256), rows in, rows out a file, and each line left out, with reason."""
    write_json(report, {"set": set_name, "inputs": entries})
