"""COIG -> coig-part1.json, coig-part2.json, coig-exam.json, coig-translate.json, coig-leetcode.json, coig-chat.json.

    python data/COIG/split.py --input data/raw/COIG --output_dir data/COIG

The name of a raw file decides how it is read, so the files must keep their public names.
"""

import ast
import gzip
import re
import sys
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.converting import (
    Piece,
    Raw,
    Shortened,
    as_object,
    convert,
    dialogue,
    fill_rows,
    find_sources,
    read_objects,
    row_or_drop,
    texts,
)
from utils import cli
from utils.errors import ArgumentFault, DataFault
from utils.strict_json import line_values, refuse_other_forms


def main(input: str = "", output_dir: str = "") -> None:
    """Convert the parts of COIG, the Chinese Open Instruction Generalist.

    --input: one of its raw files, or a folder with some of them. --output_dir: where the arrays and report.json go.
    """
    sources = find_sources(input, output_dir, tuple(PARTS))
    for source in sources:
        if source.name not in PARTS:
            raise ArgumentFault(f"--input {input}: the file must be named {' or '.join(PARTS)}")
    for source in sources:
        file, read, pieces = PARTS[source.name]
        convert("COIG", [source], output_dir, (file,), partial(fill_rows, read(source), partial(pieces, file)))


def _plain(file: str, where: str, raw: dict) -> Iterator[Piece]:
    yield row_or_drop(file, *texts(where, raw, "instruction", "input", "output", or_null="input"))


def _translated(file: str, where: str, raw: dict) -> Iterator[Piece]:
    # The plain keys hold the English original, so they must never be a fallback: a missing trans_ key is a fault.
    keys = ("trans_instruction", "trans_input", "trans_output")
    yield row_or_drop(file, *texts(where, raw, *keys, or_null="trans_input"))


def _exam(file: str, where: str, raw: dict) -> Iterator[Piece]:
    """The task is the instruction, text and question are the input; the analysis, if there is one, ends the answer."""
    question, answer = texts(where, raw, "textbox_question", "textbox_answer")
    task = _optional(where, raw, "textbox_q_instruction")
    context = _optional(where, raw, "textbox_q_context")
    if not task.strip():
        task, question = question, ""
    try:
        analysis = _optional(where, raw, "textbox_answer_analysis")
    except DataFault as fault:
        analysis = ""
        yield Shortened(str(fault).removeprefix(f"{where}: "))
    yield row_or_drop(file, task, _lines(context, question), _lines(answer, analysis))


def _optional(where: str, raw: dict, key: str) -> str:
    """The text under a key that may be missing, null or the empty list that stands for nothing, also as a text."""
    return "" if raw.get(key) in (None, [], "[]") else texts(where, raw, key)[0]


def _lines(*parts: str) -> str:
    return "\n".join(part for part in parts if part.strip())


_STRING = r"""(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
_LIST = re.compile(rf"(\[{_STRING}(?:, {_STRING})*\])(\s*)\Z")


def _leetcode(file: str, where: str, raw: dict) -> Iterator[Piece]:
    instruction, input, output = texts(where, raw, "instruction", "input", "output", or_null="input")
    yield row_or_drop(file, instruction, _unpacked(input), _unpacked(output))


def _unpacked(text: str) -> str:
    """The text with a Python list of code at its end, as repr() writes it, put back into the code itself.

    A list of short words is left alone: the examples of a task may end in ['a', 'b'].
    """
    found = _LIST.search(text)
    if not found:
        return text
    try:
        with warnings.catch_warnings(action="error"):  # an escape that repr() would not write
            items = ast.literal_eval(found[1])
        code = "\n".join(items)
        code.encode()  # no half characters
    except (ValueError, SyntaxError, Warning, MemoryError, RecursionError):
        return text
    is_code = any("\n" in item for item in items) or (len(items) == 1 and found.start() == 0)
    if not is_code or "\0" in code:
        return text
    before = text[: found.start()]
    return before + ("\n" if before.strip() and not before.endswith("\n") else "") + code + found[2]


def _chat(file: str, where: str, raw: dict) -> Iterator[Piece]:
    """round_0, round_1, … each with a response that is the text of a JSON object: Q is asked, A is answered."""
    rounds = sorted((int(key[6:]), key) for key in raw if re.fullmatch(r"round_\d{1,9}", key))
    turns, end = [], ""
    for due, (number, key) in enumerate(rounds, rounds[0][0] if rounds else 0):
        try:
            if number != due:
                raise DataFault(f"round_{due} is missing")
            turns.append(_turn(key, raw[key]))
        except DataFault as fault:
            end = str(fault)
            break
    yield from dialogue(file, turns, end)


def _turn(key: str, round: object) -> tuple[str, str]:
    (response,) = texts(key, as_object(key, round), "response")
    question, answer = texts(key, _only_object(key, response.encode()), "Q", "A")
    return question, answer


def _read_members(source: Path) -> Iterator[Raw]:
    """Each member, which must be one JSON object. Hidden files, which some systems add, are skipped.

    Raises DataFault for an archive that is cut or none at all, one without members, and a member that is a link, is
    no file, or whose path leads out of the archive: such an archive is not the published one.
    """
    with open(source, "rb") as head:
        refuse_other_forms(source, head.read(4096))
    empty = True
    try:
        with gzip.open(source) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                where = f"{source}:{member.name}"
                if member.isdir() or not _is_chat(member, where) or not (chat := archive.extractfile(member)):
                    continue
                empty = False
                yield Raw(where, {"member": member.name}, _only_object(where, chat.read()))
            _check_end(source, archive, stream)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's own, e.g. no permission
            raise
        raise DataFault(f"{source}: not a whole .tar.gz archive: {error}") from None
    if empty:
        raise DataFault(f"{source}: the archive holds no .json file")


def _check_end(source: Path, archive: tarfile.TarFile, stream: gzip.GzipFile) -> None:
    """Raises DataFault where the archive stops before its end. tarfile takes a cut or damaged header for the end."""
    stream.seek(archive.offset)
    rest = iter(lambda: stream.read(1 << 20), b"")  # to the end, where gzip's checksum stands
    blocks = [bool(block.strip(b"\0")) for block in rest]
    if any(blocks) or not blocks:
        raise DataFault(f"{source}: not a whole .tar.gz archive: cut or damaged at byte {archive.offset} of the .tar")


def _is_chat(member: tarfile.TarInfo, where: str) -> bool:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise DataFault(f"{where}: the path leads out of the archive")
    if not member.isfile():
        raise DataFault(f"{where}: a link or a device, must be a file")
    return path.suffix == ".json" and not path.name.startswith(".")


def _only_object(where: str, data: bytes) -> dict:
    """The one JSON object that `data` holds; where: what to call it in a message. Raises DataFault."""
    values = list(line_values(Path(where), 1, data))
    if len(values) != 1:
        raise DataFault(f"{where}: {len(values)} JSON values, must be one object")
    return as_object(where, values[0])


PARTS = {
    "human_value_alignment_instructions_part1.json": ("coig-part1.json", read_objects, _plain),
    "human_value_alignment_instructions_part2.json": ("coig-part2.json", read_objects, _exam),
    "exam_instructions.jsonl": ("coig-exam.json", read_objects, _exam),
    "translated_instructions.jsonl": ("coig-translate.json", read_objects, _translated),
    "leetcode_instructions.jsonl": ("coig-leetcode.json", read_objects, _leetcode),
    "counterfactural_correction_multi_round_chat.tar.gz": ("coig-chat.json", _read_members, _chat),
}

if __name__ == "__main__":
    cli.run(main)
