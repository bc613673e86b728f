"""PsyQA -> psyqa-0.json … psyqa-5.json: three ways to ask, each with every answer or the first answer only.

    python data/psyQA/split.py --input data/raw/PsyQA_full.json --output_dir data/psyQA

| instruction              | input       | every answer | first answer only |
|--------------------------|-------------|--------------|-------------------|
| question                 | ""          | psyqa-0      | psyqa-1           |
| question + " " + description | ""      | psyqa-2      | psyqa-3           |
| question                 | description | psyqa-4      | psyqa-5           |
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.converting import Dropped, Piece, Row, Shortened, convert, fill_rows, find_sources, read_objects, texts
from utils import cli
from utils.errors import DataFault
from utils.strict_json import kind_of

RAW = ("PsyQA_full.json",)
FILES = tuple(f"psyqa-{index}.json" for index in range(6))


def main(input: str = "", output_dir: str = "") -> None:
    """Convert PsyQA into its six variants.

    --input: PsyQA_full.json, or the folder it lies in. --output_dir: where the arrays and report.json go.
    """
    (source,) = find_sources(input, output_dir, RAW)
    convert("psyQA", [source], output_dir, FILES, partial(fill_rows, read_objects(source), _pieces))


def _pieces(where: str, raw: dict) -> Iterator[Piece]:
    question, description = texts(where, raw, "question", "description", or_null="description")
    answers = _answers(where, raw)
    if not question.strip() or not any(answer.strip() for answer in answers):
        answered = "every answer is empty" if answers else "the question has no answers"
        yield Dropped(answered if question.strip() else "the question is empty")
        return
    prompts = ((question, ""), (f"{question} {description}", ""), (question, description))
    for number, answer in enumerate(answers, 1):
        if not answer.strip():
            # "First answer only" means the first as published: where it is empty, no other takes its place.
            consequence = ": the question is not in psyqa-1, -3, -5" if number == 1 else ""
            yield Shortened(f"answer {number} of {len(answers)} is empty{consequence}")
            continue
        for index, prompt in enumerate(prompts):
            yield Row(FILES[2 * index], *prompt, answer)
            if number == 1:
                yield Row(FILES[2 * index + 1], *prompt, answer)


def _answers(where: str, raw: dict) -> list[str]:
    answers = raw.get("answers")
    if not isinstance(answers, list):
        found = f"is {kind_of(answers)}" if "answers" in raw else "is missing"
        raise DataFault(f'{where}: "answers" {found}, must be a list')
    for answer in answers:
        if not isinstance(answer, dict):
            raise DataFault(f'{where}: an answer is {kind_of(answer)}, must be an object with "answer_text"')
    return [text for answer in answers for text in texts(where, answer, "answer_text")]


if __name__ == "__main__":
    cli.run(main)
