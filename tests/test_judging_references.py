"""Scores that need no judge: labels, results, chrF.

python -m pytest tests/test_judging_references.py
"""

import json
from pathlib import Path

import pytest
import sacrebleu
from conftest import write_rows

import judge
from utils import references
from utils.errors import DataFault
from utils.judging import Item

ROOT = Path(__file__).resolve().parent.parent


def score(category: str, reference: str | None, answer: str) -> float | None:
    return references.score(Item(category, 1, "题", reference, {"a": answer}), answer)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("积极", "积极"), (" 消极。\n", "消极"), ("“中性”", "中性"), ("**积极**", "积极"), ("标签：消极", "消极"),
        ("这段话的情感是积极的。", "积极"), ("正面", "积极"), ("负面情绪", "消极"),
        ("Negative", "消极"), ("中 性", "中性"),
        ("不是积极，而是消极", "消极"), ("并非消极，属于中性", "中性"), ("不积极", None),
        ("不太积极", None), ("选项：积极/消极/中性\n答案：消极", "消极"), ("答案：中性。既不积极也不消极", "中性"),
        ("积极或中性", None), ("", None), ("我不知道", None), ("既不积极也不消极", None),
    ],
)  # fmt: skip
def test_the_label_that_an_answer_names(answer, label):
    assert references.label(answer) == label
    for reference in ("积极", "消极", "中性"):
        assert score("04analyse", reference, answer) == (10 if label == reference else 0)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("60", "60"), ("结果是 60。", "60"), ("3.6 × 25 = 90，48 ÷ 1.6 = 30，90 − 30 = 60", "60"),
        ("每人 6 棵……\n答：这批树苗一共有 86 棵。", "86"), ("答案：86（共 12 人，每人 6 棵余 14 棵）", "86"),
        ("设原价为 x 元，1.2x × 0.85 = 306，解得 x = 300", "300"), ("原价是 300.00 元", "300"),
        ("答案是1,300元", "1300"),
        ("因此 x⁴ + 1/x⁴ = 6² − 2 = 34", "34"), ("m = 5", "5"), ("m＝５", "5"),
        ("比值为 12/5", "12/5"), ("答案：\\frac{12}{5}", "12/5"), ("$\\boxed{\\dfrac{12}{5}}$", "12/5"),
        ("2.4", "12/5"),
        ("2又2/5", "12/5"), ("概率是 24/84 = 2/7。", "2/7"), ("7分之2", "2/7"), ("答案：**2/7**", "2/7"),
        ("所以 $n = 96$", "96"), ("两码头相距 72 千米。", "72"), ("The answer is 158.", "158"),
        ("概率是 2/7 ≈ 0.286", "2/7"), ("x = 5。\n检验：2×5+3=13", "5"), ("原价为300元，不是306。", "300"),
        ("原价是300元。", "300"), ("树苗是86棵", "86"),
        ("-3", "-3"), ("x = −3", "-3"),
    ],
)  # fmt: skip
def test_a_result_that_is_right(answer, reference):
    assert score("09math", reference, answer) == 10


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("", "60"), ("不会算", "60"), ("61", "60"), ("答案是 85，不是 86", "86"), ("7/2", "2/7"), ("2/70", "2/7"),
        ("160", "60"), ("不是 60", "60"), ("验算：1+59=60，不对，61", "60"),
        ("60.5", "60"), ("5/0", "5"), ("0.2857", "2/7"), ("3", "-3"), ("x4", "4"), ("答案是 0." + "3" * 5000, "1/3"),
    ],
)  # fmt: skip
def test_a_result_that_is_wrong(answer, reference):
    assert score("09math", reference, answer) == 0


def test_every_reference_of_the_test_data_is_its_own_right_answer():
    for category, count in ((references.LABELS, 10), (references.RESULTS, 10)):
        rows = json.loads((ROOT / "test_data" / f"{category}.json").read_text(encoding="utf-8"))
        assert [score(category, row["reference"], row["reference"]) for row in rows] == [10] * count


def test_any_other_reference_is_compared_by_chrf():
    reference, answer = "春眠不觉晓，处处闻啼鸟。", "春眠不觉晓，夜来风雨声。"
    wanted = sacrebleu.sentence_chrf(answer, [reference]).score / 10
    assert 2 < wanted < 8
    assert score("06chinese", reference, answer) == pytest.approx(wanted)
    assert score("06chinese", reference, reference) == pytest.approx(10)
    assert score("06chinese", reference, "") == 0
    assert score("06chinese", None, answer) is None


def test_auto_writes_its_table_over_the_prompts_that_have_references(tmp_path, capsys):
    prompts = [
        row for path in sorted((ROOT / "test_data").glob("*.json")) for row in json.loads(path.read_text("utf-8"))
    ]
    right = write_rows(tmp_path / "right.json", [{**row, "output": row.get("reference", "无")} for row in prompts])
    wrong = write_rows(tmp_path / "wrong.json", [{**row, "output": "积极 60"} for row in prompts])
    judge.auto(f"right={right},wrong={wrong}", str(tmp_path / "out"), str(ROOT / "test_data"))
    table = json.loads((tmp_path / "out/auto.json").read_text(encoding="utf-8"))
    assert set(table) == {"04analyse", "09math", "total"}
    assert table["total"]["right"] == {"score": 100, "low": 100, "high": 100, "n_ok": 20, "n_total": 20}
    assert (table["04analyse"]["wrong"]["score"], table["09math"]["wrong"]["score"]) == (30, 10)
    assert "20 of 100 prompts have a reference" in capsys.readouterr().out
    text = (tmp_path / "out/auto.md").read_text(encoding="utf-8")
    assert "| mathematics | 09math | 10/10 | **100 ± 0.0** |" in text


def test_without_references_there_is_nothing_to_score(tmp_path):
    prompts = write_rows(tmp_path / "01qa.json", [{"instruction": "问"}])
    answers = write_rows(tmp_path / "a.json", [{"instruction": "问", "output": "答"}])
    with pytest.raises(DataFault, match="no prompt has a"):
        judge.auto(f"a={answers}", str(tmp_path / "out"), prompts)
