"""Scores that need no judge: an answer against the reference its prompt has, from 0 to 10.

Labels (04analyse) and results (09math) are right or wrong, exactly, after both were brought to one form; any other
reference is compared by chrF, a tenth of its points.
"""

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

import sacrebleu

from utils.judging import Item
from utils.scores import Columns

LABELS = "04analyse"
RESULTS = "09math"
_ALIKE = {
    "积极": "积极|正面|正向|positive",
    "消极": "消极|负面|负向|negative",
    "中性": "中性|中立|neutral",
}
_DENIALS = ["不", "非", "无", "不是", "不算", "不太", "不够", "不很", "而非", "并非", "没有", "谈不上", "称不上"]
_NOT = "".join(f"(?<!{words})" for words in _DENIALS)
_ANSWER = re.compile(r"答案|答|结果|所以|因此|综上|共有|answer|result|boxed", re.IGNORECASE)
_CHECK = re.compile(r"(?<=\d)\D{0,4}(?:验算|检验|验证|check)", re.IGNORECASE)  # what follows a result
_NUMBER = re.compile(r"(?<![a-zA-Z_\d.])-?\d+(?:\.\d+)?(?:又\d+/\d+|\s*/\s*\d+)?(?![\d/])")


def columns(items: Sequence[Item]) -> Columns:
    """{system: score a prompt}, None where the prompt has no reference."""
    return {system: [score(item, item.answers[system]) for item in items] for system in items[0].answers}


def score(item: Item, answer: str) -> float | None:
    """One answer, from 0 to 10; None without a reference."""
    if item.reference is None:
        return None
    if item.category == LABELS:
        return 10.0 * (label(answer) == label(item.reference) is not None)
    if item.category == RESULTS:
        return 10.0 * (result(answer) == result(item.reference) is not None)
    return sacrebleu.sentence_chrf(answer, [item.reference]).score / 10


def label(text: str) -> str | None:
    """The one sentiment that a text names (and does not deny), behind the last word for "answer" or in all of it; None
    for none or for several."""
    plain = re.sub(r"[\s“”\"'‘’「」*_]", "", unicodedata.normalize("NFKC", text)).lower()
    for part in (_ANSWER.split(plain)[-1], plain):
        named = {label for label, words in _ALIKE.items() if re.search(f"{_NOT}(?:{words})", part)}
        if len(named) == 1:
            return named.pop()
    return None


def result(text: str) -> Fraction | None:
    """The number that a text ends in: behind the last word for "answer", else its last number; behind an "=" there."""
    plain = unicodedata.normalize("NFKC", _plain_latex(text)).replace("−", "-").replace("⁄", "/")
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", plain)
    plain = re.sub(r"(?<=\d)\s*(?:≈|约等于)\s*\d[\d.]*|(?:而非|并非|不是)\s*\d[\d.]*", "", plain)
    words = list(_ANSWER.finditer(plain))
    for start in [*(word.end() for word in reversed(words)), 0]:
        behind = re.split(r"[。\n;!]", plain[start:].lstrip(" :是为=*$\\({"), maxsplit=1)[0]
        sentence = behind if start else _CHECK.split(plain)[0]
        numbers = _NUMBER.findall(sentence.rpartition("=")[2]) or _NUMBER.findall(sentence)
        if numbers:
            return _fraction(numbers[0] if start else numbers[-1])
    return None


def _plain_latex(text: str) -> str:
    text = re.sub(r"\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1/\2 ", text)
    return re.sub(r"(\d+)\s*分之\s*(\d+)", r"\2/\1", re.sub(r"\*\*|\\[,;!]|\\text\{[^}]*\}", "", text))


def _fraction(text: str) -> Fraction | None:
    whole, mixed, part = text.replace(" ", "").partition("又")
    try:
        return Fraction(whole) + (Fraction(part) if mixed else 0)
    except (ZeroDivisionError, ValueError):  # 1/0; digits without end, as a model may repeat them
        return None
