"""People as judges: blind sheets, what comes back in them, the third table.

python -m pytest tests/test_judging_sheets.py
"""

import csv
import html
import json
import re
from pathlib import Path

import judges
import pytest
from judges import KEY, SYSTEMS, quality, serving, write_case

import judge
from utils import sheets
from utils.errors import DataFault, UnjudgedFault

FORMULA = '=HYPERLINK("http://x","点我")'
MARKUP = '<script>alert(1)</script> & "quoted" </pre>\n第二行'


@pytest.fixture
def case(tmp_path) -> dict:
    """Flags of sheet, with a formula and markup among the answers; the sheets are written."""
    special = {1: FORMULA, 2: MARKUP}
    flags = write_case(
        tmp_path, prompts=6, ChatGPT=lambda c, n: f"{special.get(n, '')}{judges.answer_of('ChatGPT', 8)(c, n)}"
    )
    flags.pop("model")
    judge.sheet(**flags)
    return flags


def folder(case: dict) -> Path:
    return Path(case["output_dir"])


def rows_of(path: Path) -> list[dict]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def fill(case: dict, rater: int, score=lambda row: quality(row["answer"]), name: str = "", **how) -> str:
    """A copy of the rater's sheet with scores; returns its path."""
    rows = rows_of(folder(case) / f"sheet-{rater}.csv")
    path = folder(case).parent / (name or f"filled-{rater}.csv")
    with open(path, "w", encoding=how.get("encoding", "utf-8-sig"), newline="", errors="replace") as file:
        writer = csv.DictWriter(
            file, how.get("fields", list(rows[0])), delimiter=how.get("delimiter", ","), extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(row | {"score": score(row)} for row in rows)
    return str(path)


def people(case: dict) -> dict:
    return json.loads((folder(case) / "table.json").read_text(encoding="utf-8"))["people"]


# --- The sheets ---


def test_a_sheet_holds_every_answer_once_and_nothing_that_tells_whose_it_is(case):
    for rater in (1, 2):
        rows = rows_of(folder(case) / f"sheet-{rater}.csv")
        assert len(rows) == len({row["id"] for row in rows}) == 18
        assert list(rows[0]) == ["id", "category", "prompt", "answer", "score"]
        assert {row["score"] for row in rows} == {""}
        for kind in ("csv", "html"):
            text = (folder(case) / f"sheet-{rater}.{kind}").read_text(encoding="utf-8")
            assert not any(system in text for system in SYSTEMS)


def test_each_rater_has_other_ids_and_another_order(case):
    first, second = (rows_of(folder(case) / f"sheet-{rater}.csv") for rater in (1, 2))
    assert not {row["id"] for row in first} & {row["id"] for row in second}
    assert {row["answer"] for row in first} == {row["answer"] for row in second}
    assert [row["answer"] for row in first] != [row["answer"] for row in second]
    assert [row["prompt"] for row in first] == [row["prompt"] for row in second]  # a prompt's answers stay together


def test_a_spreadsheet_runs_no_answer_and_reads_the_characters(case):
    raw = (folder(case) / "sheet-1.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    answers = [row["answer"] for row in rows_of(folder(case) / "sheet-1.csv")]
    assert next(text for text in answers if "HYPERLINK" in text).startswith("'=")
    assert not [text for text in answers if text[:1] in "=+-@"]
    assert not [
        row["id"] for row in rows_of(folder(case) / "sheet-1.csv") if not row["id"].isalnum() or row["id"][0] != "a"
    ]


def test_the_page_holds_the_same_and_runs_no_answer(case):
    page = (folder(case) / "sheet-1.html").read_text(encoding="utf-8")
    rows = rows_of(folder(case) / "sheet-1.csv")
    assert re.findall(r'<input id="(\w+)"', page) == [row["id"] for row in rows]
    assert page.count("<script>") == 1 and html.escape(MARKUP) in page
    assert "http" not in re.sub(r"http-equiv|=HYPERLINK\(&quot;http://x", "", page)  # nothing is fetched
    assert page.count("<section>") == page.count("</section>") == 6


def test_a_sheet_that_may_be_filled_is_never_overwritten(case, capsys):
    (folder(case) / "sheet-1.csv").write_text("filled")
    judge.sheet(**case)
    assert (folder(case) / "sheet-1.csv").read_text() == "filled"
    assert "is there already, kept" in capsys.readouterr().out


# --- Back again ---


def test_two_raters_make_the_third_table(case):
    high = fill(case, 1)
    low = fill(case, 2, lambda row: max(0, quality(row["answer"]) - 0.5))
    judge.collect(high, low, output_dir=case["output_dir"])
    table = people(case)["01part"]
    wanted = {
        s: sum(quality(judges.answer_of(s, t)(1, n)) - 0.25 for n in range(1, 7)) / 6 * 10 for s, t in SYSTEMS.items()
    }
    assert {system: cell["score"] for system, cell in table.items()} == pytest.approx(wanted, abs=1.3)
    text = (folder(case) / "table.md").read_text(encoding="utf-8")
    assert "## people" in text
    kappa = re.search(
        r"Mean of 2 raters, over the 18 answers that each of them scored; weighted kappa between them (0\.9\d)", text
    )
    assert kappa, text


def test_people_are_compared_with_every_judge(case, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as server:
        judge.ask(**case, model="gpt-9", base_url=server.url)
    with serving(lambda answers: [10 - quality(answer) for answer in answers]) as server:
        judge.ask(**case, model="contrary", base_url=server.url)
    judge.collect(fill(case, 1), output_dir=case["output_dir"])
    pairs = json.loads((folder(case) / "table.json").read_text(encoding="utf-8"))["agreement"]
    by_judge = {tuple(pair["between"]): pair for pair in pairs}
    assert by_judge["gpt-9", "people"]["weighted_kappa"] == by_judge["gpt-9", "people"]["rank_correlation"] == 1
    assert (
        by_judge["contrary", "people"]["rank_correlation"] == -1
        and by_judge["contrary", "people"]["weighted_kappa"] < 0
    )
    assert by_judge["gpt-9", "people"]["answers"] == 18


@pytest.mark.parametrize(
    "how",
    [
        {"encoding": "utf-8"},
        {"encoding": "gb18030"},  # Excel on a Chinese Windows
        {"encoding": "utf-16", "delimiter": "\t"},  # Excel's "Unicode text"
        {"delimiter": ";"},
        {"delimiter": "\t"},
        {"fields": ["id", "score"]},  # what the page saves
        {"fields": ["score", "answer", "id"]},
    ],
    ids=str,
)
def test_a_sheet_comes_back_in_the_forms_that_spreadsheets_save(case, how):
    judge.collect(fill(case, 1, **how), output_dir=case["output_dir"])
    assert people(case)["01part"]["ChatGPT"]["n_ok"] == 6


@pytest.mark.parametrize(
    ("written", "meant"), [("７", 7), (" 7 ", 7), ("7.25", 7.25), ("7,5", 7.5), ("7分", 7), ("0", 0), ("10", 10)]
)
def test_scores_as_people_write_them(case, written, meant):
    judge.collect(fill(case, 1, lambda row: written), output_dir=case["output_dir"])
    assert people(case)["01part"]["ChatGPT"]["score"] == meant * 10


@pytest.mark.parametrize("written", ["11", "-1", "7-8", "good", "1e1", "nan", "七"])
def test_a_score_that_is_none_is_named_with_its_line(case, written):
    with pytest.raises(DataFault, match=r"filled-1.csv:\d+: the score .* is no number from 0 to 10"):
        judge.collect(fill(case, 1, lambda row: written), output_dir=case["output_dir"])
    assert not (folder(case) / sheets.NAME).exists()


def test_a_line_is_named_as_an_editor_counts_it(case):
    """Answers of several lines come before."""
    path = Path(fill(case, 1))
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    at = max(number for number, line in enumerate(lines) if re.match("a[0-9a-f]{12},", line))
    lines[at] = re.sub(r"[^,]*$", "99", lines[at])
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataFault, match=rf"filled-1.csv:{at + 1}: the score .99."):
        judge.collect(str(path), output_dir=case["output_dir"])


def test_what_is_left_out_is_no_zero_and_exit_code_6(case):
    skipped = rows_of(folder(case) / "sheet-1.csv")[4]["id"]
    sheet = fill(case, 1, lambda row: "" if row["id"] == skipped else 8)
    with pytest.raises(UnjudgedFault, match=r"unrated: .*filled-1.csv: 1 of 18 answers"):
        judge.collect(sheet, fill(case, 2, lambda row: 8), output_dir=case["output_dir"])
    table = people(case)["01part"]
    assert sorted(cell["n_ok"] for cell in table.values()) == [5, 6, 6]
    assert {cell["score"] for cell in table.values()} == {80}
    assert "| 5-6/6 |" in (folder(case) / "table.md").read_text(encoding="utf-8")


def test_a_sheet_about_other_answers_of_the_same_systems_fits_no_row(case, tmp_path):
    """The browser keeps what was filled in by these ids too."""
    other = write_case(tmp_path / "later", prompts=6, ChatGPT=lambda category, number: "q9，另一个答案")
    other.pop("model")
    judge.sheet(**other)
    with pytest.raises(DataFault, match=r'filled-1.csv:\d+: the id "a\w+" is in no sheet of this folder'):
        judge.collect(fill(case, 1), output_dir=other["output_dir"])


def test_sheets_that_do_not_belong_together_are_refused(case, tmp_path):
    one = fill(case, 1)
    with pytest.raises(DataFault, match="the sheet of rater 1 is given twice"):
        judge.collect(one, fill(case, 1, name="again.csv"), output_dir=case["output_dir"])
    both = (
        Path(one).read_text(encoding="utf-8-sig")
        + Path(fill(case, 2)).read_text(encoding="utf-8-sig").partition("\n")[2]
    )
    mixed, twice, foreign, headless, empty = (tmp_path / f"{name}.csv" for name in "abcde")
    mixed.write_text(both, encoding="utf-8")
    twice.write_text("id,score\n" + (rows_of(Path(one))[0]["id"] + ",5\n") * 2)
    foreign.write_text("id,score\na000000000000,5\n")
    headless.write_text("a,b\n1,2\n")
    empty.write_text("")
    for path, message in (
        (mixed, "a row of rater 2 in the sheet of rater 1"),
        (twice, r"b.csv:3: the id a\w+ stands twice"),
        (foreign, r'c.csv:2: the id "a000000000000" is in no sheet'),
        (headless, "d.csv:1: the first line must name"),
        (empty, "e.csv:1: the first line must name"),
    ):
        with pytest.raises(DataFault, match=message):
            judge.collect(str(path), output_dir=case["output_dir"])


def test_a_people_file_about_other_items_is_named(case):
    (folder(case) / sheets.NAME).write_text(
        '{"rater 1": {"ratings": [{"category": "x", "number": 1, "system": "a", "score": 1}]}}'
    )
    with pytest.raises(DataFault, match="does not fit items"):
        judge.table(case["output_dir"])
