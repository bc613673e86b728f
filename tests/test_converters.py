"""The data room's converters: exact outputs on small raw files, and what they refuse.

python -m pytest tests/test_converters.py
"""

import hashlib
import json
from pathlib import Path

import pytest

from data.COIG import split as coig
from data.firefly import split as firefly
from data.psyQA import split as psyqa
from utils.errors import ArgumentFault, DataFault
from utils.strict_json import read_values

ROOT = Path(__file__).resolve().parents[1]
PART1, TRANSLATED = "human_value_alignment_instructions_part1.json", "translated_instructions.jsonl"
UNUSUAL = " \u00a0下联：左\u2028右\u0085\r\n\t### Response:\\n😀 "


def dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def lines(*values: object) -> str:
    return "".join(dump(value) + "\n" for value in values)


def task(kind: str, number: int, target: str | None = None) -> dict:
    return {"kind": kind, "input": f"{kind}{number}", "target": target or f"答{number}"}


def put(folder: Path, name: str, content: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def run(split, source: Path, out: Path) -> dict[str, list[dict]]:
    split.main(input=str(source), output_dir=str(out))
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    return {path.stem: json.loads(path.read_text("utf-8")) for path in out.glob("*.json") if path.name != "report.json"}


def run_firefly(tmp_path: Path, content: str | bytes) -> dict[str, list[dict]]:
    return run(firefly, put(tmp_path / "raw", "firefly-train-1.1M.jsonl", content), tmp_path / "out")


def report(tmp_path: Path) -> list[dict]:
    return json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))["inputs"]


def instructions(outputs: dict[str, list[dict]]) -> list[list[str]]:
    return [[row["instruction"] for row in outputs[name]] for name in sorted(outputs)]


# Firefly


def test_firefly_cuts_each_kind_in_five_and_keeps_the_order(tmp_path):
    # A: 7 rows, pieces of 2 (the last is empty); B: 3 rows, pieces of 1; C: 10 rows, pieces of 2; interleaved.
    kinds = list("ABCCAACBCCACACCBACAC")
    number = dict.fromkeys(kinds, 0)
    raw = []
    for kind in kinds:
        raw.append(task(kind, number[kind]))
        number[kind] += 1
    outputs = run_firefly(tmp_path, lines(*raw))
    assert instructions(outputs) == [
        ["A0", "B0", "C0", "C1", "A1"],
        ["A2", "C2", "B1", "C3", "A3"],
        ["C4", "C5", "A4", "B2", "A5"],
        ["C6", "C7", "A6"],
        ["C8", "C9"],
    ]
    assert outputs["firefly-train-3"][0] == {"instruction": "C6", "input": "", "output": "答6"}
    assert sum(map(len, outputs.values())) == len(raw)


def test_firefly_report(tmp_path):
    raw = lines(task("A", 0), task("A", 1, "\u3000\n"), *(task("A", number) for number in range(2, 6)))
    outputs = run_firefly(tmp_path, raw)
    assert instructions(outputs) == [
        ["A0"],
        ["A2", "A3"],
        ["A4", "A5"],
        [],
        [],
    ]  # a dropped row keeps its place in the cut
    assert report(tmp_path) == [
        {
            "files": {"firefly-train-1.1M.jsonl": hashlib.sha256(raw.encode()).hexdigest()},
            "rows_in": 6,
            "rows_out": {f"firefly-train-{index}.json": count for index, count in enumerate((1, 2, 2, 0, 0))},
            "repeats": {},
            "dropped": [{"line": 2, "reason": "the output would be empty"}],
            "shortened": [],
        }
    ]


def test_output_is_one_row_a_line_with_the_characters_as_written(tmp_path):
    put(tmp_path, "any-name.jsonl", lines(task("A", 0, UNUSUAL), {**task("A", 0, UNUSUAL), "kind": "B"}))
    rows = run(firefly, tmp_path / "any-name.jsonl", tmp_path / "out")["firefly-train-0"]
    assert [row["output"] for row in rows] == [UNUSUAL, UNUSUAL]  # no strip, and duplicates stay
    written = (tmp_path / "out" / "firefly-train-0.json").read_bytes()
    row = dump({"instruction": "A0", "input": "", "output": UNUSUAL})
    assert written.decode() == f"[\n{row},\n{row}\n]\n"
    assert [line for line, _ in read_values(tmp_path / "out" / "firefly-train-0.json")] == [2, 3]
    assert (tmp_path / "out" / "firefly-train-1.json").read_text() == "[\n]\n"


ROWS = [task("A", number) for number in range(3)]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + lines(*ROWS).encode(),
        lines(*ROWS).replace("\n", "\r\n"),
        "\n".join(map(dump, ROWS)) + "\n\n \n",
        "".join(map(dump, ROWS)),
        dump(ROWS),
        b"\xef\xbb\xbf" + json.dumps(ROWS, indent=1).replace("\n", "\r\n").encode(),
        lines(*({**row, "extra": None} for row in ROWS)),
    ],
    ids=["BOM", "CRLF", "blank lines", "}{", "array in .jsonl", "indented array, BOM, CRLF", "extra key"],
)
def test_accepted_forms(tmp_path, content):
    assert instructions(run_firefly(tmp_path, content)) == [["A0"], ["A1"], ["A2"], [], []]


GOOD = dump(ROWS[0]) + "\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (GOOD + dump(ROWS[1])[:-5], ":2:"),
        (GOOD + "\n" + "{broken}\n" + GOOD, ":3:"),
        (lines(task("对联", 1)).encode("gbk"), ":1: not UTF-8 (byte 0xb6), looks like GBK"),
        (GOOD.encode() + b'{"kind": "\xff"}\n', ":2: not UTF-8"),
        ("version https://git-lfs.github.com/spec/v1\n", ":1: a Git LFS pointer"),
        (GOOD + '{"kind": "A", "input": "\\ud83d", "target": "x"}\n', ":2:1: a text holds a lone surrogate"),
        (GOOD + lines({"kind": "A", "input": "x"}), """:2: "target" is missing (the row has 'kind', 'input')"""),
        (GOOD + lines({"input": "x", "target": "x"}), ':2: "kind" is missing'),
        (GOOD + lines({**ROWS[0], "target": None}), ':2: "target" is null, must be text'),
        (GOOD + lines({**ROWS[0], "input": ["x"]}), ':2: "input" is a list, must be text'),
        (GOOD + lines({**ROWS[0], "kind": 3}), ':2: "kind" is a number, must be text'),
        (GOOD + "null\n", ":2: a row is null, must be an object"),
        ("[\n" + GOOD + ",\n7]", ":4: a row is a number, must be an object"),
        ("", ": the file is empty"),
        ("[]", ": no rows"),
        (lines(task("A", 1, " ")), ":1: every row would be dropped, the first because the output would be empty"),
    ],
)
def test_refused_with_file_and_line_and_nothing_written(tmp_path, content, said):
    with pytest.raises(DataFault) as caught:
        run_firefly(tmp_path, content)
    assert f"firefly-train-1.1M.jsonl{said}" in str(caught.value)
    assert not list((tmp_path / "out").glob("**/*"))


# COIG


def translated(number: int, **changes: object) -> dict:
    row = {"instruction": f"English {number}", "input": "English in", "output": "English out", "task_name": "t"}
    row |= {"trans_instruction": f"中文{number}", "trans_input": "", "trans_output": f"译{number}"}
    return {key: value for key, value in (row | changes).items() if value != "gone"}


def test_coig_takes_a_folder_with_both(tmp_path):
    rows = [
        {"instruction": "问", "input": "入", "output": " 答\n"},
        {"instruction": "问二", "input": "", "output": "答"},
    ]
    put(tmp_path / "raw", PART1, json.dumps(rows, ensure_ascii=False, indent=4))
    put(tmp_path / "raw", TRANSLATED, lines(translated(0), translated(1, trans_output=" "), translated(2)))
    outputs = run(coig, tmp_path / "raw", tmp_path / "out")
    assert outputs == {
        "coig-part1": rows,
        "coig-translate": [
            {"instruction": "中文0", "input": "", "output": "译0"},
            {"instruction": "中文2", "input": "", "output": "译2"},
        ],
    }
    part1, translate = report(tmp_path)
    assert ([*part1["files"]], part1["rows_in"], part1["rows_out"]) == ([PART1], 2, {"coig-part1.json": 2})
    assert (translate["rows_in"], translate["dropped"]) == (3, [{"line": 2, "reason": "the output would be empty"}])


def test_coig_in_two_runs_reports_both_and_again_only_once(tmp_path):
    part1 = put(tmp_path / "raw", PART1, dump([{"instruction": "问", "input": "", "output": "答"}]))
    translate = put(tmp_path / "other", TRANSLATED, lines(translated(0)))
    assert set(run(coig, tmp_path / "raw", tmp_path / "out")) == {"coig-part1"}
    assert set(run(coig, translate, tmp_path / "out")) == {"coig-part1", "coig-translate"}
    run(coig, part1, tmp_path / "out")
    assert sorted(file for entry in report(tmp_path) for file in entry["files"]) == [PART1, TRANSLATED]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("trans_instruction", "gone", "is missing"),
        ("trans_input", "gone", "is missing"),
        ("trans_output", "gone", "is missing"),
        ("trans_instruction", None, "is null"),
        ("trans_output", None, "is null"),
    ],
)
def test_translated_never_falls_back_to_english(tmp_path, key, value, said):
    put(tmp_path / "raw", TRANSLATED, lines(translated(0), translated(1, **{key: value})))
    with pytest.raises(DataFault, match=rf'{TRANSLATED}:2: "{key}" {said}'):
        run(coig, tmp_path / "raw", tmp_path / "out")


def test_a_null_input_is_no_input(tmp_path):
    put(tmp_path / "raw", TRANSLATED, lines(translated(0, trans_input=None)))
    put(tmp_path / "raw", PART1, dump([{"instruction": "问", "input": None, "output": "答"}]))
    outputs = run(coig, tmp_path / "raw", tmp_path / "out")
    assert [row["input"] for rows in outputs.values() for row in rows] == ["", ""]


def test_coig_refuses_a_file_of_another_name(tmp_path):
    path = put(tmp_path, "coig.jsonl", lines(translated(0)))
    with pytest.raises(ArgumentFault, match=f"--input .*coig.jsonl: .*{PART1} or .*{TRANSLATED}"):
        coig.main(input=str(path), output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# PsyQA


def question(text: str, description: str, *answers: str) -> dict:
    given = [{"answer_text": answer, "has_label": False, "labels_sequence": None} for answer in answers]
    return {"question": text, "description": description, "keywords": "情绪,压力", "answers": given, "questionID": 1}


def run_psyqa(tmp_path: Path, *rows: dict) -> dict[str, list[list[str]]]:
    content = json.dumps(rows, ensure_ascii=False, indent=1).replace("\n", "\r\n")
    outputs = run(psyqa, put(tmp_path / "raw", "PsyQA_full.json", content), tmp_path / "out")
    return {name: [list(row.values()) for row in rows] for name, rows in outputs.items()}


def test_psyqa_all_six(tmp_path):
    assert run_psyqa(tmp_path, question("问一", "述一", "答1\r\n", " 答2"), question("问二", "", "答3")) == {
        "psyqa-0": [["问一", "", "答1\r\n"], ["问一", "", " 答2"], ["问二", "", "答3"]],
        "psyqa-1": [["问一", "", "答1\r\n"], ["问二", "", "答3"]],
        "psyqa-2": [["问一 述一", "", "答1\r\n"], ["问一 述一", "", " 答2"], ["问二 ", "", "答3"]],
        "psyqa-3": [["问一 述一", "", "答1\r\n"], ["问二 ", "", "答3"]],
        "psyqa-4": [["问一", "述一", "答1\r\n"], ["问一", "述一", " 答2"], ["问二", "", "答3"]],
        "psyqa-5": [["问一", "述一", "答1\r\n"], ["问二", "", "答3"]],
    }


def test_psyqa_drops_and_reports(tmp_path):
    rows = [
        question("无", "述"),
        question("首空", "述", "", "答2"),
        question("次空", "述", "答1", "\n"),
        question(" ", "述", "答"),
    ]
    outputs = run_psyqa(tmp_path, *rows)
    for index in range(6):
        kept = [["首空", "答2"]] if index % 2 == 0 else []
        assert [[row[0][:2], row[2]] for row in outputs[f"psyqa-{index}"]] == [*kept, ["次空", "答1"]]
    (entry,) = report(tmp_path)
    assert (entry["rows_in"], entry["rows_out"]["psyqa-0.json"], entry["rows_out"]["psyqa-5.json"]) == (4, 2, 1)
    assert [drop["reason"] for drop in entry["dropped"]] == ["the question has no answers", "the question is empty"]
    assert [part["reason"] for part in entry["shortened"]] == [
        "answer 1 of 2 is empty: the question is not in psyqa-1, -3, -5",
        "answer 2 of 2 is empty",
    ]
    raw = (tmp_path / "raw" / "PsyQA_full.json").read_text("utf-8").split("\n")
    assert '"无"' in raw[entry["dropped"][0]["line"]]  # the line of a row is that of its brace, the key comes next
    assert '"首空"' in raw[entry["shortened"][0]["line"]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": None}, '"answers" is null, must be a list'),
        ({"answers": ["答"]}, 'an answer is a text, must be an object with "answer_text"'),
        ({"answers": [{"has_label": True}]}, '"answer_text" is missing'),
        ({"answers": [{"answer_text": 5}]}, '"answer_text" is a number, must be text'),
        ({"description": 7}, '"description" is a number, must be text'),
    ],
)
def test_psyqa_refuses(tmp_path, change, said):
    source = put(tmp_path, "PsyQA_full.json", lines(question("问", "述", "答"), question("问", "述", "答") | change))
    with pytest.raises(DataFault) as caught:
        run(psyqa, source, tmp_path / "out")
    assert f"PsyQA_full.json:2: {said}" in str(caught.value)
    with pytest.raises(DataFault, match='"answers" is missing'):
        run(psyqa, put(tmp_path, "x.json", lines({"question": "问", "description": ""})), tmp_path / "out")
