"""A file of JSON lines that one process at a time appends to, each line on the disk before the next is worked on."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path

from utils.errors import EnvironmentFault
from utils.files import disk_faults


class Journal:
    """The file, open for appending. A last line that a kill has torn is cut off.

    Raises EnvironmentFault while another process has it open, or where it cannot be written.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            self._file = open(self.path, "ab")  # noqa: SIM115 - held until close
        except OSError as error:
            raise EnvironmentFault(f"{self.path} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise EnvironmentFault(f"{self.path} is being written by another run") from None
        whole = self.path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            print(f"{self.path}: the last line was torn ({len(whole) - end} bytes), cut off")
            os.truncate(self.path, end)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others have the file."""
        self._file.close()

    def append(self, line: Mapping[str, object]) -> None:
        """Write one line and wait until the disk has it."""
        with disk_faults(self.path):
            self._file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def whole_lines(path: Path) -> list[bytes]:
    """The lines that are whole, without their ends; none where there is no file."""
    return Path(path).read_bytes().split(b"\n")[:-1] if Path(path).exists() else []
