"""The strict reader: what is accepted as it is, and what is refused with file:line."""

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from conftest import write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import ROWS

import finetune
import generate
from utils import cli, dataset
from utils.errors import DataFault
from utils.rows import read_prompts, read_rows
from utils.strict_json import read_values

GOOD = '{"instruction": "问", "input": "", "output": "答"}'


def read(tmp_path, content: str | bytes, name: str = "a.json") -> list:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return [{key: value for key, value in row.items() if key != "line"} for row in read_rows(path, Counter())]


def refusal(main, flags: dict, capsys) -> str:
    """What a command that leaves with 3 says: one line."""
    with pytest.raises(SystemExit) as left:
        cli.run(main, [f"--{name}={value}" for name, value in flags.items()])
    (line,) = (line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "error" in line)
    assert left.value.code == 3 and "Traceback" not in line
    return line


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        f"[{GOOD}, {GOOD}]",
        f"{GOOD}\n{GOOD}\n",
        f"{GOOD}\n{GOOD}",
        f"\ufeff{GOOD}\r\n\r\n{GOOD}\r\n\n",
        f"\ufeff[\r\n{GOOD},\r\n{GOOD}\r\n]\r\n\n",
        f"{GOOD}{GOOD}\n",
    ],
)
def test_arrays_and_lines_are_read_under_either_name(tmp_path, content, name):
    assert read(tmp_path, content, name) == [json.loads(GOOD) | {"history": []}] * 2


@pytest.mark.parametrize(
    "text", ["2023-01-02", "a\u2028b\u0085c", " 空 白 \n", "</s>", "😀", "\u00a0", "### Response:"]
)
def test_text_is_kept_byte_for_byte(tmp_path, text):
    row = {"instruction": text + "问", "input": text, "output": "答" + text, "history": [["一" + text, text + "二"]]}
    assert read(tmp_path, json.dumps(row, ensure_ascii=False)) == [row]
    assert read(tmp_path, json.dumps([row])) == [row]


def test_a_null_or_missing_input_is_empty(tmp_path):
    content = '{"instruction":"a","input":null,"output":"b","id":1}\n{"instruction":"a","output":"b","id":2}'
    assert read(tmp_path, content) == [{"instruction": "a", "input": "", "output": "b", "history": []}] * 2


BROKEN = [
    ("", "the file is empty"),
    ("  \n\n", "the file is empty"),
    ("[]", "no rows"),
    ("null", ":1: a row is null"),
    ("3", ":1: a row is a number"),
    (json.dumps(json.loads(GOOD), indent=1), ":1:2: invalid JSON"),
    (json.dumps({"data": [json.loads(GOOD)]}, indent=1), ":1:2: invalid JSON"),
    ('[1, "a"]', ":1: a row is a number"),
    ('{"data": []}', ':1: "instruction" is missing'),
    (f"{GOOD}\n[{GOOD}]", ":2: a row is a list"),
    (f'{GOOD}\n{{"instruction": "a"}}', ':2: "output" is missing'),
    (f'{GOOD}\n\n{{"instruction": 1, "output": "b"}}', ':3: "instruction" is a number'),
    (f'[\n{GOOD},\n{{"instruction": "a", "input": [], "output": "b"}}]', ':3: "input" is a list'),
    ('{"instruction": "a", "output": null}', ':1: "output" is null'),
    ('{"instruction": "a", "output": " "}', ':1: "output" is empty'),
    ('{"instruction": "a", "output": true}', ':1: "output" is true or false'),
    (f'{GOOD}\r\n\r\n{{"instruction": }}\r\n', ":3:17: invalid JSON"),
    (f"{GOOD}\n{GOOD[:-9]}", ":2:"),
    (f"[\n{GOOD},\n{GOOD[:-9]}", ":3:"),
    (f"[\n{GOOD},\n]", ":3:1: invalid JSON"),
    (f"[\n{GOOD}\n{GOOD}]", ':3:1: invalid JSON: expected ","'),
    (f"[{GOOD}] x", "behind the end"),
    ('{"instruction": "a", "instruction": "b", "output": "c"}', 'the key "instruction" stands twice'),
    ('{"instruction": "a", "output": NaN}', "NaN is not JSON"),
    (f'{GOOD}\n{{"instruction": "a", "output": "b", "score": -Infinity}}', ":2:1: -Infinity is not JSON"),
    ('{"instruction": "a", "output": "\\ud83d"}', "lone surrogate"),
    ('{"instruction": "a", "output": "b\\u0000"}', "NUL"),
    ('{"instruction": "a", "output": "b\0"}', "Invalid control character"),
    ('{"instruction": "a", "output": "b", "c": ' + "[" * 900 + '"\\ud800"' + "]" * 900 + "}", "lone surrogate"),
    ("version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer"),
    (GOOD.encode("gbk"), "looks like GBK"),
    (GOOD.replace('"', '"' + "".join(map(chr, range(0x4E00, 0x5A00))), 1).encode("gbk", "ignore"), "looks like GBK"),
    (GOOD.encode("utf-16"), "looks like UTF-16"),
    (GOOD.encode("utf-16-le"), "looks like UTF-16"),
    (f"[\n{GOOD},\n".encode() + GOOD.encode("gbk") + b"]", ":3: not UTF-8 (byte 0xce), looks like GBK: iconv -f GBK"),
    (f"{GOOD}\n".encode() + b'{"instruction": "\xff"}', ":2: not UTF-8 (byte 0xff)"),
    ("[" * 100_000, "nested too deeply"),
    ('{"instruction": "a", "output": "b", "c": ' + "9" * 5000 + "}", "value has 5000 digits"),
    ('{"instruction": "a", "output": "b", "history": [["x"]]}', ':1: a turn of "history" must be'),
    ('{"instruction": "a", "output": "b", "history": "x"}', ':1: "history" is a text'),
]


@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_what_is_broken_is_refused_with_its_place_and_exit_code_3(base, tmp_path, capsys, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    flags = {"base_model": base, "data_path": path, "output_dir": tmp_path / "out", "val_set_size": 0}
    refused = refusal(finetune.train, flags, capsys)
    assert f".py: error: {path}" in refused and message in refused and "sys." not in refused
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("content", "message"), [pair for pair in BROKEN if "output" not in pair[1]])
def test_prompts_are_refused_alike(base, tmp_path, capsys, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    flags = {"base_model": base, "test_input_path": path, "output_path": tmp_path / "test.json", "is_ui": False}
    refused = refusal(generate.main, flags, capsys)
    assert str(path) in refused and message.replace("no rows", "no prompts") in refused


def test_an_escaped_pair_is_a_character_and_not_a_lone_surrogate(tmp_path):
    assert read(tmp_path, '{"instruction": "a", "output": "\\ud83d\\ude00"}')[0]["output"] == "😀"


def test_line_numbers_in_a_long_array(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[\n" + ",\n".join([GOOD] * 500) + "\n]")
    assert [line for line, _ in read_values(path)] == list(range(2, 502))


def test_prompts_are_strings_or_rows(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('["问", {"instruction": "a", "history": [["x", "y"]], "reference": "r"}]', encoding="utf-8")
    row = {"instruction": "a", "history": [["x", "y"]], "reference": "r"}
    assert read_prompts(path) == [{"instruction": "问"}, row]
    path.write_text('["a", 3]')
    with pytest.raises(DataFault, match=r"p\.json:1: a row is a number, must be text, or an object with instruction$"):
        read_prompts(path)


def test_a_bad_byte_among_good_ones_is_not_taken_for_gbk(tmp_path):
    with pytest.raises(DataFault, match=r"a\.json:2: not UTF-8 \(byte 0xff\)$"):
        read(tmp_path, f"{GOOD}\n{GOOD}".encode() + b"\xff\n")


def test_numbers_are_right_behind_a_bom_crlf_and_blank_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(f"\ufeff\r\n{GOOD}\r\n\r\n \r\n{GOOD}{GOOD}\r\n".encode())
    assert [line for line, _ in read_values(path)] == [2, 5, 5]
    path.write_bytes(f"\ufeff\r\n[\r\n{GOOD}\r\n,\r\n\r\n{GOOD}, {GOOD}]".encode())
    assert [line for line, _ in read_values(path)] == [3, 6, 6]


def test_all_broken_rows_are_told_at_once(tmp_path):
    empty = '{"instruction": "a", "output": ""}'
    with pytest.raises(
        DataFault, match=r'a\.json:2: "output" is empty \(7 other broken rows: lines 3, 4, 5, 6, 7, …\)$'
    ):
        read(tmp_path, "\n".join([GOOD, *[empty] * 7, GOOD, "{"]))
    with pytest.raises(DataFault, match=r"a\.json:1: .* \(99 or more other broken rows"):
        read(tmp_path, "\n".join([empty] * 1000))
    with pytest.raises(DataFault, match=r'a\.json:1: a turn of "history" has an empty text$'):
        read(tmp_path, '{"instruction": "a", "output": "b", "history": [["x", " "]]}')


def test_a_row_that_misses_its_end_is_named_by_its_beginning_too(tmp_path):
    with pytest.raises(DataFault, match=r"a\.json:4:1: invalid JSON: .* \(in the value that begins on line 3\)"):
        read(tmp_path, f"[\n{GOOD},\n{GOOD[:-1]},\n{GOOD}\n]")


@pytest.mark.parametrize("block", [1, 7, 64])
def test_an_array_is_the_same_however_it_is_cut_into_blocks(tmp_path, monkeypatch, block):
    values = ["😀中" * 9, -12.5e3, 123456789, True, None, {"é": [[], {}, '\\"\n']}, "😀", 0]
    path = tmp_path / "a.json"
    for text in (json.dumps(values), json.dumps(values, ensure_ascii=False, indent=1), "[ ]", "[1]\n"):
        path.write_text(text, encoding="utf-8")
        whole = list(read_values(path))
        assert [value for _, value in whole] == json.loads(text)
        with monkeypatch.context() as patch:
            patch.setattr("utils.strict_json._BLOCK", block)
            assert list(read_values(path)) == whole
            for cut in range(1, len(text)):
                path.write_text(text[:cut].rstrip("]"), encoding="utf-8")
                with pytest.raises(DataFault, match=r"a\.json:\d+:\d+: invalid JSON"):
                    list(read_values(path))


def test_an_array_is_not_held_in_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "a.json"
    row = json.dumps({"instruction": "a", "output": "b" * 4000})
    path.write_text("[" + ",\n".join([row] * 5000) + "]")
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path, Counter()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5000 and path.stat().st_size > 20e6 and peak < 8e6


# Any rows: written and read again, with one fault somewhere

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
FILLED = TEXT.filter(str.strip)
ANY_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "instruction": FILLED,
            "input": TEXT,
            "output": FILLED,
            "history": st.lists(st.lists(FILLED, min_size=2, max_size=2), max_size=2),
        }
    ),
    min_size=1,
    max_size=6,
)
WAYS = {  # rows as lines of JSON -> (the file, the line of the first row)
    "lines": lambda rows: ("\n".join(rows), 1),
    "lines, CRLF, BOM": lambda rows: ("\ufeff" + "\r\n".join(rows) + "\r\n", 1),
    "array": lambda rows: ("[\n" + ",\n".join(rows) + "\n]\n", 2),
    "array, BOM": lambda rows: ("\ufeff\n[" + "\n, ".join(rows) + "]", 2),
}
FAULTS = {  # a row as JSON -> the same, broken
    "null": lambda row: b"null",
    "number": lambda row: b"17",
    "no output": lambda row: row.replace(b'"output":', b'"outpu":'),
    "wrong type": lambda row: row.replace(b'"instruction":', b'"instruction": 3, "was":'),
    "twice": lambda row: row.replace(b'"output":', b'"instruction": "a", "output":'),
    "NaN": lambda row: row.replace(b'"output":', b'"x": NaN, "output":'),
    "surrogate": lambda row: row.replace(b'"output":', b'"x": "\\udfff", "output":'),
    "NUL": lambda row: row.replace(b'"output":', b'"x": "\\u0000", "output":'),
    "bad byte": lambda row: row.replace(b'"output":', b'"x\xfe": "", "output":'),
    "no colon": lambda row: row.replace(b'"output":', b'"output"'),
    "cut text": lambda row: b'{"instruction": "a',
}
quick_check = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick_check
@given(rows=ANY_ROWS, way=st.sampled_from(sorted(WAYS)), ascii=st.booleans())
def test_any_rows_survive_being_written_read_and_kept(tmp_path, rows, way, ascii):
    path = tmp_path / "a.json"
    path.write_text(WAYS[way]([json.dumps(row, ensure_ascii=ascii) for row in rows])[0], encoding="utf-8", newline="")
    kept, (origin,) = dataset.load_rows(str(path))
    assert list(kept.remove_columns(["line", "file"])) == rows and origin["rows"] == len(rows)


@pytest.mark.parametrize("fault", sorted(FAULTS))
@settings(quick_check, max_examples=12)
@given(rows=ANY_ROWS, way=st.sampled_from(sorted(WAYS)), where=st.integers(0, 5))
def test_a_fault_is_reported_at_its_line(tmp_path, rows, way, fault, where):
    where %= len(rows)
    marks = [json.dumps(row) if number != where else "@@here@@" for number, row in enumerate(rows)]
    content, first = WAYS[way](marks)
    path = tmp_path / "a.json"
    broken = FAULTS[fault](json.dumps({**rows[where], "history": []}).encode())
    path.write_bytes(content.encode().replace(b"@@here@@", broken))
    with pytest.raises(DataFault, match=rf"^{re.escape(str(path))}:{first + where}\b"):
        list(read_rows(path, Counter()))


def test_fuzzed_files_are_read_right_or_refused(tmp_path, monkeypatch):
    """The bench does this with 10,000."""
    monkeypatch.setenv("DREAMERGPT_CACHE", str(tmp_path / "cache"))
    source = Path(__file__).resolve().parent.parent / "scripts" / "bench" / "fuzz_rows.py"
    spec = importlib.util.spec_from_file_location("fuzz_rows", source)
    fuzz_rows = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz_rows)
    counts, failures = fuzz_rows.fuzz(250, 100_000, str(tmp_path))
    assert not failures and counts["accepted"] > 25 and counts["refused"] > 125


def test_dates_stay_texts(tmp_path):
    rows = [{"instruction": "2023-01-02", "input": "2023-01-02T03:04:05Z", "output": "1999-12-31"}] * 3
    kept, _ = dataset.load_rows(write_rows(tmp_path / "a.json", rows))
    assert list(kept.select_columns(["instruction", "input", "output"])) == rows


def test_all_rows_masked_leave_with_3(base, tmp_path, capsys):
    path = write_rows(tmp_path / "a.json", ROWS)
    flags = {"base_model": base, "data_path": path, "output_dir": tmp_path / "out", "val_set_size": 0, "cutoff_len": 9}
    refused = refusal(finetune.train, {**flags, "train_on_inputs": False}, capsys)
    assert "--cutoff_len 9 leaves no answer of any of the 8 rows to learn from" in refused
