"""The converters of COIG's further parts, BELLE, Alpaca-GPT4, couplets and baize; the sample data through all seven.

python -m pytest tests/test_converters_sets.py
"""

import gzip
import io
import json
import tarfile
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

from data.baize import split as baize
from data.belle import split as belle
from data.COIG import split as coig
from data.couplets import split as couplets
from utils.errors import ArgumentFault, DataFault
from utils.rows import read_rows

ROOT = Path(__file__).resolve().parents[1]
alpaca = import_module("data.alpaca-gpt4.split")
CHAT = "counterfactural_correction_multi_round_chat.tar.gz"


def dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def lines(*values: object) -> str:
    return "".join(dump(value) + "\n" for value in values)


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def run(split, source: Path, out: Path) -> tuple[dict[str, list[list]], dict]:
    """(output name -> rows as lists of their values, the last entry of the report)."""
    split.main(input=str(source), output_dir=str(out))
    entry = json.loads((out / "report.json").read_text("utf-8"))["inputs"][-1]
    files = {path.stem: json.loads(path.read_text("utf-8")) for path in out.glob("*.json") if path.stem != "report"}
    return {name: [list(row.values()) for row in rows] for name, rows in files.items()}, entry


def coig_rows(tmp_path: Path, name: str, *rows: dict) -> tuple[list[list], dict]:
    outputs, entry = run(coig, put(tmp_path / "raw", name, lines(*rows)), tmp_path / "out")
    (converted,) = outputs.values()
    return converted, entry


# COIG: exam and part 2, leetcode, chat


def exam(**changes: object) -> dict:
    row = {"subject": "语文", "textbox_q_instruction": "选择", "textbox_q_context": "文", "textbox_question": "问"}
    row |= {"textbox_answer": "A", "textbox_answer_analysis": "析"}
    return {key: value for key, value in (row | changes).items() if value != "gone"}


@pytest.mark.parametrize("name", ["exam_instructions.jsonl", "human_value_alignment_instructions_part2.json"])
@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({}, ["选择", "文\n问", "A\n析"]),
        ({"textbox_q_context": "gone"}, ["选择", "问", "A\n析"]),
        ({"textbox_q_context": ""}, ["选择", "问", "A\n析"]),
        ({"textbox_q_instruction": None}, ["问", "文", "A\n析"]),
        ({"textbox_answer_analysis": []}, ["选择", "文\n问", "A"]),
        ({"textbox_answer_analysis": "[]"}, ["选择", "文\n问", "A"]),
        ({"textbox_answer_analysis": "gone"}, ["选择", "文\n问", "A"]),
        ({"textbox_answer_analysis": " "}, ["选择", "文\n问", "A"]),
        ({"textbox_answer_analysis": 5}, ["选择", "文\n问", "A"]),
    ],
)
def test_coig_exam(tmp_path, name, change, row):
    rows, entry = coig_rows(tmp_path, name, exam(**change))
    assert rows == [row]
    shortened = change.get("textbox_answer_analysis") == 5
    said = [{"line": 1, "reason": '"textbox_answer_analysis" is a number, must be text'}] if shortened else []
    assert entry["shortened"] == said


def test_coig_exam_refuses_an_answer_that_is_no_text(tmp_path):
    with pytest.raises(DataFault, match=r'exam_instructions.jsonl:2: "textbox_answer" is a list'):
        coig_rows(tmp_path, "exam_instructions.jsonl", exam(), exam(textbox_answer=["A"]))


@pytest.mark.parametrize(
    ("text", "unpacked"),
    [
        ("代码：['class S:\\n    pass']", "代码：\nclass S:\n    pass"),
        (repr(["a\n'b'\t", 'c"\n']) + "\n", "a\n'b'\t\nc\"\n\n"),
        ("['SELECT 1']", "SELECT 1"),
        ("返回 ['a', 'b']", "返回 ['a', 'b']"),
        ("x = d['a']", "x = d['a']"),
        ("['__import__(\"os\").abort()\\n' + '']", "['__import__(\"os\").abort()\\n' + '']"),
        ("['\\ud800\\n']", "['\\ud800\\n']"),
        ("['\\x00\\n']", "['\\x00\\n']"),
        ("['\\d\\n']", "['\\d\\n']"),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_coig_leetcode(tmp_path, text, unpacked):
    row = {"instruction": "写", "input": text, "output": text, "task_type": "t", "program_lang": "python"}
    rows, _ = coig_rows(tmp_path, "leetcode_instructions.jsonl", row)
    assert rows == [["写", unpacked, unpacked]]


def chat(*turns: object) -> str:
    rounds = [dump({"Q": turn[0], "A": turn[1]}) if isinstance(turn, tuple) else turn for turn in turns]
    return dump({**{f"round_{number}": {"response": text} for number, text in enumerate(rounds)}, "entity": "物"})


def archive(folder: Path, *members: tuple[str, str | bytes] | tarfile.TarInfo) -> Path:
    path = put(folder, CHAT, b"")
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_coig_chat_in_the_order_of_the_archive(tmp_path):
    many = [(f"问{number}", f"答{number}") for number in range(11)]  # round_10 comes behind round_9
    folder = tarfile.TarInfo("chat")
    folder.type = tarfile.DIRTYPE
    source = archive(
        tmp_path,
        folder,
        ("chat/b.json", chat(("一", "二"), ("三", "四"))),
        ("chat/._b.json", b"\0\0"),
        ("chat/a.json", chat(*many)),
        ("chat/c.json", chat(("五", "六"), "no JSON", ("七", "八"))),
        ("chat/d.json", chat(("九", 10))),
        ("chat/e.json", chat(("问", "答"), ("问", " "))),
    )
    outputs, entry = run(coig, source, tmp_path / "out")
    assert outputs["coig-chat"] == [
        ["三", "", "四", [["一", "二"]]],
        ["问10", "", "答10", [list(turn) for turn in many[:-1]]],
        ["五", "", "六"],
        ["问", "", "答"],
    ]
    assert entry["dropped"] == [{"member": "chat/d.json", "reason": 'round_0: "A" is a number, must be text'}]
    assert [part["member"] for part in entry["shortened"]] == ["chat/c.json", "chat/e.json"]
    assert entry["rows_in"] == 5 == entry["rows_out"]["coig-chat.json"] + len(entry["dropped"])


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (("/etc/x.json", chat(("一", "二"))), "/etc/x.json: the path leads out"),
        (("a/../../x.json", chat(("一", "二"))), "a/../../x.json: the path leads out"),
        (link("x.json", tarfile.SYMTYPE), "x.json: a link or a device"),
        (link("x.json", tarfile.LNKTYPE), "x.json: a link or a device"),
        (link("x.json", tarfile.FIFOTYPE), "x.json: a link or a device"),
        (("x.json", "[]"), "x.json: a row is a list"),
        (("x.json", '{"a":\n\n "b" "c"}'), "x.json:3:6: invalid JSON"),
        (("x.json", b'{"a": "\xff"}'), "x.json:1: not UTF-8"),
        (("readme.txt", "x"), "the archive holds no .json file"),
    ],
)
def test_coig_chat_refuses_unsafe_and_broken_members(tmp_path, member, said):
    with pytest.raises(DataFault) as caught:
        coig.main(input=str(archive(tmp_path, member)), output_dir=str(tmp_path / "out"))
    assert f"{CHAT}:" in str(caught.value) and said in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_coig_chat_refuses_what_is_no_whole_archive(tmp_path):
    whole = archive(tmp_path, ("a.json", chat(("一", "二" * 9000)))).read_bytes()
    for content in (whole[: len(whole) // 2], b"no archive", b"", b"version https://git-lfs.github.com/spec/v1\n"):
        with pytest.raises(DataFault, match=rf"{CHAT}:.*(not a whole|Git LFS pointer)"):
            coig.main(input=str(put(tmp_path, CHAT, content)), output_dir=str(tmp_path / "out"))


def test_coig_chat_refuses_an_archive_that_stops_within(tmp_path):
    """Where a header is cut or damaged, tarfile takes it for the end and says nothing of the chats behind it."""
    source = archive(tmp_path, *[(f"{number}.json", chat((f"问{number}", "答"))) for number in range(40)])
    packed, tar = source.read_bytes(), gzip.decompress(source.read_bytes())
    damaged = bytearray(tar)
    damaged[1024 * 20 + 3] ^= 1  # the name in the 21st header: its checksum is wrong
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 1
    wrong_sum = packed[:-8] + bytes(4) + packed[-4:]
    cuts = [packed[: len(packed) * share // 10] for share in (3, 5, 9)]
    cut_tars = [gzip.compress(tar[: 1024 * 20 + more]) for more in (0, 100, 512, 700)]
    for content in (*cuts, *cut_tars, gzip.compress(damaged), bytes(flipped), wrong_sum):
        with pytest.raises(DataFault, match=rf"{CHAT}: not a whole .tar.gz archive"):
            coig.main(input=str(put(tmp_path, CHAT, content)), output_dir=str(tmp_path / "out"))


def test_coig_chat_ends_before_a_round_that_is_missing(tmp_path):
    rounds = {f"round_{number}": {"response": dump({"Q": f"问{number}", "A": "答"})} for number in (0, 1, 3)}
    outputs, entry = run(coig, archive(tmp_path, ("a.json", dump(rounds))), tmp_path / "out")
    assert outputs["coig-chat"] == [["问1", "", "答", [["问0", "答"]]]]
    assert entry["shortened"] == [{"member": "a.json", "reason": "round_2 is missing; the dialogue ends before it"}]


# BELLE and Alpaca-GPT4


def test_belle_reads_both_forms_and_strips_nothing(tmp_path):
    rows = [
        {"instruction": " 问 ", "input": "", "output": "\n答 "},
        {"input": "旧问", "target": "旧答"},
        {"instruction": "问", "input": None, "output": "答"},
        {"instruction": "问", "input": None, "output": "答"},
    ]
    outputs, entry = run(belle, put(tmp_path, "Belle_open_source_0.5M.json", lines(*rows)), tmp_path / "out")
    assert outputs["belle"] == [[" 问 ", "", "\n答 "], ["旧问", "", "旧答"], ["问", "", "答"], ["问", "", "答"]]
    assert entry["repeats"] == {"belle.json": 1}


def test_alpaca_gpt4_knows_the_words_for_no_input(tmp_path):
    words = ["", "noinput", "Noinput", "No input", "No Input", None, "<noinput>", "no input", "No input is given"]
    rows = [{"instruction": f"i{number}", "input": word, "output": "o"} for number, word in enumerate(words)]
    outputs, _ = run(alpaca, put(tmp_path, "alpaca_gpt4_data.json", dump(rows)), tmp_path / "out")
    assert [row[1] for row in outputs["alpaca-gpt4"]] == ["", *[""] * 5, "<noinput>", "no input", "No input is given"]


# Couplets


def halves(folder: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        put(folder, f"{name.replace('_', '/')}.txt", content)
    return folder


def test_couplets_of_two_halves(tmp_path):
    raw = halves(
        tmp_path / "raw",
        train_in="\ufeff雨 洗 ， 绿 \r\n下 联 ： 左 \n \n",
        train_out="霞 烧 ， 红 \n右 ",
        test_in="溪 声 \n\u3000\n山 ",
        test_out="山 影 \n海 \n水 \n",
    )
    outputs, entry = run(couplets, raw, tmp_path / "out")
    train, test = [["雨洗，绿", "", "霞烧，红"], ["下联：左", "", "右"]], [["溪声", "", "山影"], ["山", "", "水"]]
    assert outputs == {"couplet-0": train, "couplet-1": test, "couplet-all": train + test}
    assert entry["dropped"] == [{"line": 2, "file": "test/in.txt", "reason": "the instruction would be empty"}]
    assert sorted(entry["files"]) == ["test/in.txt", "test/out.txt", "train/in.txt", "train/out.txt"]
    assert entry["rows_in"] == 5 == entry["rows_out"]["couplet-all.json"] + len(entry["dropped"])


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("一 \n二 \n三 ", "一 \n二 ", "in.txt:3: has no line to go with it"),
        ("一 ", "一 \n二 ", "out.txt:2: has no line to go with it"),
        ("一 \n", "\n一 ", "out.txt:2: has no line to go with it"),
        ("\n \n", "\n", "in.txt: no lines"),
        ("下 联 \n二 ".encode("gbk"), "一 \n二 ", "in.txt:1: not UTF-8 (byte 0xcf), looks like GBK"),
        ("一 \n二 ", "一 \n".encode() + b"\xff", "out.txt:2: not UTF-8"),
        ("一 \n\0", "一 \n二 ", "in.txt:2: the text holds NUL"),
        ("version https://git-lfs.github.com/spec/v1\n", "一 ", "in.txt:1: a Git LFS pointer"),
    ],
)
def test_couplets_that_do_not_match_are_refused(tmp_path, first, second, said):
    raw = halves(tmp_path / "raw", **{"in": first, "out": second})
    with pytest.raises(DataFault) as caught:
        couplets.main(input=str(raw), output_dir=str(tmp_path / "out"))
    assert said in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_couplets_wrong_folders(tmp_path):
    for files in ({"in": "一"}, {"in": "一", "out": "二", "train_in": "一", "train_out": "二"}):
        raw = halves(tmp_path / "".join(files), **files)
        with pytest.raises(ArgumentFault, match="--input"):
            couplets.main(input=str(raw), output_dir=str(tmp_path / "out"))


# baize


def dialogue(*sides: str, closing: str = "[|Human|] ") -> dict:
    text = "".join(f"[|{('Human', 'AI')[number % 2]}|] {side}\n" for number, side in enumerate(sides))
    return {"topic": "t", "input": "The conversation between human and AI assistant.\n" + text + closing}


def test_baize(tmp_path):
    rows = [
        dialogue("q1", "a1", "q2\n\nlonger", "a2"),
        dialogue("say [|AI|] here", "a [|Human|] b\n[|AI|] quoted"),
        dialogue("q1", "a1", "q2", ""),
        dialogue("q1", ""),
        dialogue("q1", "a1", "q2", closing=""),
        dialogue("q1", "a1", closing=""),
    ]
    outputs, entry = run(baize, put(tmp_path, "quora_chat_data.json", json.dumps(rows)), tmp_path / "out")
    assert outputs["baize-quora"] == [
        ["q2\n\nlonger", "", "a2", [["q1", "a1"]]],
        ["say [|AI|] here", "", "a [|Human|] b\n[|AI|] quoted"],
        ["q1", "", "a1"],
        ["q1", "", "a1"],
        ["q1", "", "a1"],
    ]
    assert entry["dropped"] == [{"line": 1, "row": 4, "reason": "turn 1 of 1: the assistant says nothing"}]
    assert [part["row"] for part in entry["shortened"]] == [3, 5]


def test_baize_names_the_row_on_a_line_of_many(tmp_path):
    source = put(tmp_path, "quora_chat_data.json", json.dumps([dialogue("q", "a"), {"topic": "t", "input": "x"}]))
    with pytest.raises(DataFault, match=r'quora_chat_data.json:1: row 2: "input" must begin with'):
        baize.main(input=str(source), output_dir=str(tmp_path / "out"))
    with pytest.raises(ArgumentFault, match="<topic>_chat_data"):
        baize.main(input=str(put(tmp_path, "x.json", "[]")), output_dir=str(tmp_path / "out"))


# The sample data

SETS = {"firefly": 548, "COIG": 132, "psyQA": 48, "belle": 48, "couplets": 66, "baize": 17, "alpaca-gpt4": 46}


@pytest.mark.parametrize("name", SETS)
def test_the_sample_passes_and_training_reads_it(tmp_path, name):
    split = import_module(f"data.{name}.split")
    run(split, ROOT / "data" / "sample" / name, tmp_path)
    entries = json.loads((tmp_path / "report.json").read_text("utf-8"))["inputs"]
    assert sum(entry["rows_in"] for entry in entries) == SETS[name]
    for entry in entries:
        for file, count in entry["rows_out"].items():
            assert not count or len(list(read_rows(tmp_path / file, Counter()))) == count
        if name in ("firefly", "COIG", "belle", "baize", "alpaca-gpt4"):
            assert entry["rows_in"] == sum(entry["rows_out"].values()) + len(entry["dropped"])
