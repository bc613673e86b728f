r"""A strict reader of JSON arrays and JSON Lines: every value with its line, every fault with file:line.

The public sets lie about their form (JSON Lines named .json, `}{` without a newline), so the first character
decides, not the extension. Lines end at \n only: U+2028 and U+0085 are text. Standard library only.
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import DataFault

_SUSPECT = re.compile(r"\\u(?:d[89a-f]|0000)", re.IGNORECASE)
_CHINESE = re.compile("[\u4e00-\u9fff]")
_HALF = re.compile("[\ud800-\udfff]")
_BLANKS: Any = re.compile(r"[ \t\r\n]*")  # matches anywhere
_BLANK_BYTES = b" \t\r\n"
_BLOCK = 1 << 20  # bytes of an array read at a time
_SEAM = 32  # characters at the end of what is read: whether they are wrong is known when more is read


def read_values(path: str | Path) -> Iterator[tuple[int, object]]:
    """Yield (line number, value) for every element of an array or every JSON Lines value of a UTF-8 file.

    A BOM, CRLF, blank lines and values that follow each other without a newline are accepted. Raises DataFault for
    an empty file, bytes that are not UTF-8, invalid JSON, duplicate keys, NaN or Infinity, lone surrogates, NUL.
    An array is held a few values at a time, JSON Lines a line at a time.
    """
    path = Path(path)
    array = is_array(path)
    with open(path, "rb") as file:
        if array:
            yield from _read_array(path, file)
            return
        for number, raw in enumerate(file, 1):
            for value in line_values(path, number, raw):
                yield number, value


def is_array(path: Path) -> bool:
    """Whether a file holds an array, and not JSON Lines. Raises DataFault where it is empty or in another form."""
    with open(path, "rb") as file:
        head = file.read(4096)
        refuse_other_forms(path, head)
        text = head.removeprefix(codecs.BOM_UTF8).lstrip(_BLANK_BYTES)
        while head and not text:
            head = file.read(4096)
            text = head.lstrip(_BLANK_BYTES)
    if not text:
        raise DataFault(f"{path}: the file is empty")
    return text.startswith(b"[")


def refuse_other_forms(path: Path, head: bytes) -> None:
    """Raise DataFault where a file that begins with `head` is UTF-16 or a Git LFS pointer."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head[:2]:
        raise DataFault(f"{path}:1: not UTF-8, looks like UTF-16: iconv -f UTF-16 -t UTF-8")
    if head.startswith(b"version https://git-lfs"):
        raise DataFault(f"{path}:1: a Git LFS pointer, not the data: fetch the file with git lfs pull")


def _not_utf8(path: Path, error: UnicodeDecodeError, first_line: int) -> DataFault:
    data = error.object
    line = first_line + data.count(b"\n", 0, error.start)
    around = data[data.rfind(b"\n", 0, error.start) + 1 :][:4096]
    return DataFault(f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}){_encoding_hint(around)}")


def _encoding_hint(data: bytes) -> str:
    try:
        text = codecs.getincrementaldecoder("gb18030")().decode(data)  # the cut may fall inside a character
    except UnicodeDecodeError:
        return ""
    # One bad byte among good ones leaves most of a text Chinese; of GBK read as UTF-8 a character may be, by chance.
    as_gbk, as_utf8 = (len(_CHINESE.findall(one)) for one in (text, data.decode("utf-8", "ignore")))
    return ", looks like GBK: iconv -f GBK -t UTF-8" if as_gbk >= max(2, 4 * as_utf8) else ""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of a UTF-8 text file, without line ends. Raises DataFault for other encodings, NUL."""
    with open(path, "rb") as file:
        refuse_other_forms(path, file.read(4096))
        file.seek(0)
        for number, raw in enumerate(file, 1):
            if b"\0" in raw:
                raise DataFault(f"{path}:{number}: the text holds NUL")
            yield number, _decoded(path, number, raw).removesuffix("\n").removesuffix("\r")


def _decoded(path: Path, number: int, raw: bytes) -> str:
    try:
        return (raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error, number) from None


def _behind_blanks(text: str, position: int) -> int:
    found = _BLANKS.match(text, position)
    return found.end() if found else position


def line_values(path: Path, number: int, raw: bytes) -> Iterator[object]:
    """The values on line `number` of a JSON Lines file, whose bytes are `raw`. Raises as read_values does."""
    text = _decoded(path, number, raw.rstrip(b"\r\n"))  # a fault at the end of a line is on that line
    position = _behind_blanks(text, 0)
    while position < len(text):
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            end = None
        if end is None or _SUSPECT.search(text, position, end):  # the slower way, which says what is wrong and where
            line = _Window(path, text, number, position)
            value, end = line.value(), line.position
        yield value
        position = _behind_blanks(text, end)


def _read_array(path: Path, file: BinaryIO) -> Iterator[tuple[int, object]]:
    window = _Window(path, "", 1, file=file)
    window.next_character()
    mark = window.next_character(1)
    while mark != "]":
        yield window.line, window.value()
        mark = window.next_character()
        if mark == ",":
            window.next_character(1)
        elif mark != "]":
            problem = "cut?" if mark else "the file ends here"
            raise window.fault(window.position, f'invalid JSON: expected "," or "]" ({problem})')
    if window.next_character(1):
        raise window.fault(window.position, "invalid JSON: text behind the end of the array")


class _Window:
    """A piece of a text, read on from `file` as it is needed; what stands in front of `position` is forgotten.

    line: the line `position` is on, counted from 1.
    """

    def __init__(self, path: Path, text: str, line: int, position: int = 0, file: BinaryIO | None = None):
        self.path, self.text, self.line, self.position = path, text, line, position
        self.file: Any = file  # None at its end
        self._line_start = 0  # where the line begins in `text`; negative when that is forgotten
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()

    def next_character(self, skipped: int = 0) -> str:
        """Go behind so many characters to the next one that is not blank, and return it; "" at the end."""
        self._go_to(_behind_blanks(self.text, self.position + skipped))
        while self.position == len(self.text) and self.file is not None:
            self._read_on()
            self._go_to(_behind_blanks(self.text, self.position))
        return self.text[self.position : self.position + 1]

    def value(self) -> object:
        """Parse the value that starts at `position` and go behind it. Raises DataFault."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self.text) - _SEAM or error.msg.startswith("Unterminated string")
                if self.file is None or not cut:
                    raise self.fault(error.pos, f"invalid JSON: {error.msg}") from None
            except RecursionError:
                raise self.fault(self.position, "nested too deeply") from None
            except ValueError as error:
                raise self.fault(self.position, str(error).partition("; use sys.")[0]) from None
            else:
                if self.file is None or end <= len(self.text) - _SEAM:
                    break
            self._read_on()
        if _SUSPECT.search(self.text, self.position, end) and (reason := _unwritable(value)):
            raise self.fault(self.position, reason)
        self._go_to(end)
        return value

    def fault(self, position: int, reason: str) -> DataFault:
        """The error that names file, line and column of `position`, and where the value began if not on this line."""
        line = self.line + self.text.count("\n", self.position, position)
        start = self.text.rfind("\n", self.position, position) + 1 or self._line_start
        begun = f" (in the value that begins on line {self.line})" if line > self.line else ""
        return DataFault(f"{self.path}:{line}:{position - start + 1}: {reason}{begun}")

    def _go_to(self, position: int) -> None:
        if lines := self.text.count("\n", self.position, position):
            self.line += lines
            self._line_start = self.text.rindex("\n", self.position, position) + 1
        self.position = position

    def _read_on(self) -> None:
        """Read the next block, at least as long as what is kept: a huge value is not parsed again and again."""
        kept = self.text[self.position :]
        data = self.file.read(max(_BLOCK, len(kept))) if self.file else b""
        try:
            self.text = kept + self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _not_utf8(self.path, error, self.line + kept.count("\n")) from None
        self._line_start -= self.position
        self.position = 0
        self.file = self.file if data else None


def _unwritable(value: object) -> str | None:
    """What is wrong with a text in the value, or None."""
    waiting = [value]  # not by recursion: a value may be nested almost as deeply as Python's stack
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, str) and "\0" in item:
            return "a text holds NUL (\\u0000)"
        elif isinstance(item, str) and _HALF.search(item):
            return "a text holds a lone surrogate (half a character)"
    return None


def kind_of(value: object) -> str:
    """What a JSON value is, in words for a message."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f'the key "{twice[:80]}" stands twice in one object')
    return result


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
