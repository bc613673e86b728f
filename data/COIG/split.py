"""COIG -> coig-part1.json, coig-part2.json, coig-exam.json, coig-translate.json, coig-leetcode.json, coig-chat.json.

    python data/COIG/split.py --input raw/COIG --output_dir data/COIG

The name of a raw file decides how it is read, so the files must keep their public names.
"""

import ast
import re
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.archives import only_object, read_members
from data.converting import (
    Piece,
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
    rounds = sorted((key for key in raw if re.fullmatch(r"round_\d{1,9}", key)), key=lambda key: int(key[6:]))
    turns: list[tuple[str, str]] = []
    end = ""
    first = int(rounds[0][6:]) if rounds else 0
    for number, key in enumerate(rounds, first):
        try:
            if int(key[6:]) != number:
                raise DataFault(f"round_{number} is missing")
            turns.append(_turn(key, raw[key]))
        except DataFault as fault:
            end = str(fault)
            break
    yield from dialogue(file, turns, end)


def _turn(key: str, round: object) -> tuple[str, str]:
    (response,) = texts(key, as_object(key, round), "response")
    question, answer = texts(key, only_object(key, response.encode()), "Q", "A")
    return question, answer


PARTS = {
    "human_value_alignment_instructions_part1.json": ("coig-part1.json", read_objects, _plain),
    "human_value_alignment_instructions_part2.json": ("coig-part2.json", read_objects, _exam),
    "exam_instructions.jsonl": ("coig-exam.json", read_objects, _exam),
    "translated_instructions.jsonl": ("coig-translate.json", read_objects, _translated),
    "leetcode_instructions.jsonl": ("coig-leetcode.json", read_objects, _leetcode),
    "counterfactural_correction_multi_round_chat.tar.gz": ("coig-chat.json", read_members, _chat),
}

if __name__ == "__main__":
    cli.run(main)
