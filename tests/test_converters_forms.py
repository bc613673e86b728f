"""Any rows survive a converter, a fault is named where it stands, and the quick way says what the strict one says.

python -m pytest tests/test_converters_forms.py
"""

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import data.parts as parts
from data.belle import split as belle
from data.firefly import split as firefly
from utils.errors import DataFault, Fault
from utils.strict_json import line_values, read_values

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
SAID = TEXTS.filter(lambda text: text.strip())
TASKS = st.lists(st.tuples(st.sampled_from(["A", "B", "下联", '"q"']), SAID, SAID), min_size=1, max_size=12)


def convert(split, content: bytes, folder: Path) -> list[dict]:
    source = folder / "raw.jsonl"
    source.write_bytes(content)
    split.main(input=str(source), output_dir=str(folder / "out"))
    files = sorted(path for path in (folder / "out").glob("*.json") if path.name != "report.json")
    return [row for path in files for row in json.loads(path.read_bytes())]


@FEW
@given(st.lists(st.tuples(SAID, TEXTS, SAID), min_size=1, max_size=8), st.booleans(), st.booleans())
def test_any_rows_survive(tmp_path, rows, ascii, array):
    rows = [dict(zip(("instruction", "input", "output"), row)) for row in rows]
    text = [json.dumps(row, ensure_ascii=ascii) for row in rows]
    content = f"[{','.join(text)}]" if array else "\r\n".join(text)
    assert convert(belle, content.encode(), tmp_path) == rows
    assert [value for _, value in read_values(tmp_path / "out" / "belle.json")] == rows


def pieces_of(tasks: list[tuple[str, str, str]]) -> list[dict]:
    """What the five files hold, one after the other, by the definition."""
    sizes = {kind: sum(task[0] == kind for task in tasks) for kind, *_ in tasks}
    seen = dict.fromkeys(sizes, 0)
    files: list[list[dict]] = [[] for _ in range(5)]
    for kind, instruction, output in tasks:
        files[seen[kind] // -(-sizes[kind] // 5)].append({"instruction": instruction, "input": "", "output": output})
        seen[kind] += 1
    return [row for file in files for row in file]


@FEW
@given(TASKS, st.booleans(), st.booleans(), st.sampled_from([(", ", ": "), (",", ":"), (" ,\t", " :  ")]))
def test_any_firefly_is_cut_alike_from_lines_and_from_an_array(tmp_path, tasks, ascii, array, separators):
    rows = [dict(zip(("kind", "input", "target"), task)) for task in tasks]
    text = [json.dumps(row, ensure_ascii=ascii, separators=separators) for row in rows]
    content = f"[{','.join(text)}]" if array else "\n".join(text)
    assert convert(firefly, content.encode(), tmp_path) == pieces_of(tasks)


def test_firefly_in_many_parts_on_all_cores(tmp_path, monkeypatch):
    draw = random.Random(1)
    tasks = [(draw.choice("ABC"), f"问{number}\n", "答" * draw.randrange(1, 90)) for number in range(700)]
    content = "".join(
        json.dumps(dict(zip(("kind", "input", "target"), task)), ensure_ascii=False) + "\n" for task in tasks
    )
    monkeypatch.setattr(parts, "BLOCK", 300)
    for part in (1000, 20_000):
        monkeypatch.setattr(parts, "PART", part)
        assert convert(firefly, content.encode(), tmp_path) == pieces_of(tasks)
        with pytest.raises(DataFault, match=r"raw.jsonl:601: "):
            lines = content.encode().split(b"\n")
            convert(firefly, b"\n".join([*lines[:600], lines[600][:-9], *lines[601:]]), tmp_path)


BROKEN = [
    b'{"kind": "A"',
    b'{"kind": "A", "input": "x", "target": 5}',
    b'{"kind": "A", "input": "x", "target": "\\ud800"}',
    b'{"kind": "A", "input": "x", "target": "\\u0000"}',
    b'{"kind": "A", "input": "x", "target": "\xff"}',
    b'{"kind": "A", "input": "x", "target": "\xed\xa0\x80"}',
    b'{"kind": "A", "input": "\x01", "target": "y"}',
    b'{"kind":"A","kind":"A","input":"x","target":"y"}',
    b'{"kind":"A","input":"x","target":"y","kind":0,"kind":"A"}',
    b'{"kind": "A", "input": "x", "target": "y", "n": NaN}',
    b'{"kind": "A", "input": null, "target": "y"}',
    b'{"kind": "\xff", "input": "x", "target": "y"}',
    b"null",
    b'{"kind": "A", "input": "x", "target": "y"}]',
    b'{"kind": "A", "input": "x", "target": "y",}',
]


@pytest.mark.parametrize("broken", BROKEN)
@settings(FEW, max_examples=5)
@given(TASKS, st.data())
def test_a_fault_is_named_at_its_line(tmp_path, broken, tasks, data):
    rows = [json.dumps(dict(zip(("kind", "input", "target"), task)), ensure_ascii=False).encode() for task in tasks]
    place = data.draw(st.integers(0, len(rows)))
    with pytest.raises(DataFault) as caught:
        convert(firefly, b"\n".join([*rows[:place], broken, *rows[place:]]), tmp_path)
    assert f"raw.jsonl:{place + 1}:" in str(caught.value)


# The quick way


def strictly(line: bytes) -> tuple[str, dict] | None:
    """The kind and the row of a line that is one row without a fault, as the strict reader says."""
    try:
        ((where, value),) = [("f:1", value) for value in line_values(Path("f"), 1, line)]
        kind, instruction, output = firefly._texts(where, value)
    except (ValueError, Fault):
        return None
    said = instruction.strip() and output.strip()
    return (kind, {"instruction": instruction, "input": "", "output": output}) if said else None


def mutated(draw: random.Random, line: bytes) -> bytes:
    """A few bytes taken away, doubled, or put in, most of them such as mean something."""
    out = bytearray(line)
    for _ in range(draw.randrange(1, 4)):
        start = draw.randrange(len(out) + 1)
        end = min(len(out), start + draw.choice((0, 1, 2, 12)))
        marks = (
            b'"',
            b"\\",
            b",",
            b"{",
            b"}",
            b"\\u0000",
            b'"kind":"B",',
            b'"kind":0,',
            b"\\ud83d",
            b"\xe3\x80\x80",
            b"\xff",
        )
        out[start:end] = draw.choice((b"", bytes(out[start:end]) * 2, draw.choice(marks), bytes([draw.randrange(256)])))
    return bytes(out).replace(b"\n", b"")


def test_the_quick_way_accepts_nothing_that_the_strict_one_refuses():
    draw = random.Random(2)
    taken = 0
    for number in range(20_000):
        lines = []
        for _ in range(draw.choice((1, 1, 3))):
            task = {
                "kind": "A",
                "input": draw.choice(["问", "\u3000", '"', "/"]),
                "target": draw.choice(["答\n", " ", "x\u0085"]),
            }
            separators = draw.choice([(", ", ": "), (",", ":")])
            line = json.dumps(task, ensure_ascii=draw.random() < 0.2, separators=separators).encode()
            lines.append(mutated(draw, line) if number % 10 and draw.random() < 0.7 else line)
        block = b"\n".join(lines)
        if draw.random() < 0.2:
            place = draw.randrange(len(block) + 1)
            block = block[:place] + draw.choice((b"\n", b"\n}", b"}\n")) + block[place:]
        if found := firefly._quick(block):
            taken += 1
            rows = list(zip(found[0], map(json.loads, found[1]), strict=True))
            assert rows == [strictly(line) for line in block.removesuffix(b"\n").split(b"\n")], block
    assert taken > 1000


@pytest.mark.parametrize("name", ["firefly", "belle"])
def test_fuzzed_files_end_in_rows_or_in_one_fault(tmp_path, name):
    draw = random.Random(3)
    split, keys = {
        "firefly": (firefly, ("kind", "input", "target")),
        "belle": (belle, ("instruction", "input", "output")),
    }[name]
    for number in range(150):
        rows = [
            json.dumps(dict.fromkeys(keys, f"文{index}"), ensure_ascii=False) for index in range(draw.randrange(1, 5))
        ]
        content = ("[" + ",\n".join(rows) + "]" if draw.random() < 0.5 else "\n".join(rows)).encode()
        content = mutated(draw, content) if number % 10 else content
        try:
            for row in convert(split, content, tmp_path):
                assert all(isinstance(row[key], str) for key in ("instruction", "input", "output"))
        except Fault as fault:
            assert "raw.jsonl" in str(fault)
