"""A judge's reply into scores: one number from 0 to 10 for each of System1 … SystemN, or the reason why not.

Judges write scores in many forms, and quote the answers they judge. So only a label at the start of a line or a
clause, directly followed by a number, is a verdict; a number that counts something is not; what stands in quotation
marks, or word for word in a judged answer, moves nothing. Where two readings are possible there is none: the judge is
asked again.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_DIGITS = "零〇一二两三四五六七八九"
_IN_ASCII = str.maketrans(_DIGITS + "点", "001223456789.")
_NUMBER = rf"\d+(?:\.\d+)?|(?:[{_DIGITS}]?十[{_DIGITS}]?|[{_DIGITS}]+)(?:点[{_DIGITS}]+)?"
_LABEL = r"(?:system|系[统統])\s*[#_\-]?\s*(?P<label>\d{1,3}|[一二三四五六七八九十])(?!\d)"
_SCORE_WORD = r"分数|评分|得分|打分|总分|scored?|rating"
# What may stand between a label and its number. Possessive (*+): a hostile reply cannot make it search for ever.
_FILL = (
    rf"(?:\s-+\s|[—–]+|{_SCORE_WORD}|最终|最后|总体|综合|修正|更新|调整|改|后|的|评|打|得|给|我|应|该|为|是|成"
    r"|final|revised|gets|receives|'s\b|[\s*_`\"'\]】」:=>#{(])*+"
)
_UNIT = r"\s*(?:分(?![钟之点析别段类数制中里米])|points?\b|pts?\b)"
_DENOMINATOR = (
    r"[\s*_`]*(?:\(?\s*(?:/|out of|满分|总分|共)\s*(?:为|是)?|\((?=\s*\d+\s*分制\s*\)))"
    r"\s*(?P<of>\d+)\s*(?:分制?)?\s*\)?"
)
_SCORE = rf"(?P<sign>[-−+])?(?P<number>{_NUMBER})(?P<unit>{_UNIT})?(?:{_DENOMINATOR})?"
_VERDICT = re.compile(rf"{_LABEL}(?P<fill>{_FILL}){_SCORE}", re.IGNORECASE)
_CELL = re.compile(_SCORE, re.IGNORECASE)
_TITLE = re.compile(_SCORE_WORD, re.IGNORECASE)
_ANY_LABEL = re.compile(_LABEL, re.IGNORECASE)
# Also 8,5 and 8 1/2.
_RANGE = re.compile(
    rf"[ \t]*分?[ \t]*(?:[-~–—−]+|到|至|或|or)[ \t]*(?:{_NUMBER})"
    r"|[ \t]*,[ \t]*\d+(?:\.\d+)?[ \t]*(?:分|$|[\n;。!?)])|[ \t]+\d+[ \t]*/[ \t]*\d",
    re.IGNORECASE,
)
# A second score behind the first, in the same line. Only a correction is one for certain: 修正为 6 分.
_SECOND = re.compile(
    r"(?:(?P<revised>修正|更正|改|revised to)[^\d\n;。]{0,6}?"
    r"|(?:最终|最后|应该|应|现在|现)[为是得给]+|^\s*,?\s*实?得)\s*"
    rf"(?P<number>{_NUMBER})(?:(?P<unit>{_UNIT})|\s*/\s*100?\b)|^\s*(?:→|[-=]>)\s*\d",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r"[ \t]*(?:[个条点项处句字年月日号步次种名位行段遍倍%题道篇首件人岁级层组章节款元块米度]|小时|分[钟制中里])"
    r"|[+=×^<>a-z\d_]",
    re.IGNORECASE,
)
_LINE_END = re.compile(r"[ \t*]*(?:$|\n)")
_ENDS = re.compile(r"[ \t]*(?:$|[\n;,。!?)\]】}|*_\"'~(:/]|\.[ \t]*(?:$|\n))")
_QUOTED = re.compile(
    r"“[^”]{0,2000}”|「[^」]{0,2000}」|『[^』]{0,2000}』|‘[^’]{0,2000}’|\"[^\"\n]*\"|(?<!`)`[^`\n]+`(?!`)|^[ \t]*>.*$",
    re.MULTILINE,
)
_BEFORE = re.compile(rf"(?:{_SCORE_WORD}|结果|汇总|如下|scores|给|对于?|for)[: ]*", re.IGNORECASE)
_AGAIN = re.compile(r"修正|更正|更新|调整|修改|重新|复核|最终|最后|综上|因此|revised|final|correct", re.IGNORECASE)
_TOLD = re.compile(r"写|称|说|要求|声明|自评|内容|claim|say|said|writ", re.IGNORECASE)
_DECORATION = " \t*_#>-•·`\"'([【{,、:|"
# A run of lines with bars: a table, or what an answer or a judge leaves of one.
_TABLE = re.compile(r"(?:^[^\n|]*\|[^\n]*(?:\n|$))+", re.MULTILINE)


@dataclass(frozen=True)
class Parsed:
    """What a reply says. scores: one a system, in the order of the labels, None when `problem` says why not.
    revised: labels that were given more than one score; the last counts."""

    scores: list[float] | None
    problem: str = ""
    revised: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Mention:
    """One verdict: score is None where `problem` says what is wrong with it. weak: text follows the bare number."""

    label: int
    score: float | None
    problem: str
    text: str
    weak: bool = False


def parse(reply: str, systems: int, answers: Sequence[str] = (), finish_reason: str = "stop") -> Parsed:
    """Scores of System1 … System<systems> in `reply`, each from 0 to 10.

    answers: the judged texts; what stands in them word for word cannot change a score given elsewhere.
    finish_reason: "length" is a reply that was cut, and refused.
    """
    text = unicodedata.normalize("NFKC", without_thoughts(reply))
    if not text.strip():
        return Parsed(None, "the reply is empty")
    if finish_reason == "length":
        return Parsed(None, "the reply is cut")
    texts = [unicodedata.normalize("NFKC", answer) for answer in answers]
    said = "\n".join(map(_squeezed, [*texts, *map(_tables_as_lines, texts)]))
    mentions = list(_mentions(_tables_as_lines(_QUOTED.sub(_blank_verdict, text))))
    own = {mention for mention in mentions if _squeezed(mention.text) not in said}
    for mention in mentions:
        if mention in own and not 1 <= mention.label <= systems:
            return Parsed(None, f"System{mention.label} of {systems}")
    scores: list[float] = []
    revised: list[int] = []
    for label in range(1, systems + 1):
        given = [mention for mention in mentions if mention.label == label]
        given = [mention for mention in given if not mention.weak] or given
        if len({mention.score for mention in given}) > 1:
            given = [mention for mention in given if mention in own]
            if not given:
                return Parsed(None, f"System{label}: its scores stand in a judged answer")
        last = given[-1] if given else _Mention(label, None, "no score", "")
        if last.score is None:
            return Parsed(None, f"System{label}: {last.problem}")
        scores.append(last.score)
        revised += [label] * (len({mention.score for mention in given}) > 1)
    return Parsed(scores, revised=tuple(revised))


def without_thoughts(reply: str) -> str:
    """The reply without <think>…</think>, also where the opening mark, or the end, is missing."""
    closed = re.sub(r"(?is)<think>.*?(?:</think>|\Z)", "", reply)
    return re.sub(r"(?is)\A.*</think>", "", closed)


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text).lower()


def _blank_verdict(quoted: re.Match) -> str:
    """Spaces in place of a quotation that holds a label and a number behind it."""
    label = _ANY_LABEL.search(quoted[0])
    holds = label and re.search(rf"[\d十{_DIGITS}]", quoted[0][label.end() :])
    return " " * len(quoted[0]) if holds else quoted[0]


def _mentions(text: str) -> Iterator[_Mention]:
    last = 0
    for match in _VERDICT.finditer(text):
        if _stands_first(text, match.start(), last) and (mention := _read(text, match)):
            yield mention
            if second := _second(text, match):
                yield second
            last = match.end()


def _stands_first(text: str, start: int, last: int) -> bool:
    """Whether a label at `start` begins a line or a clause, or follows the verdict that ends at `last`."""
    if last and start - last < 40 and not re.sub(r"[\s,、;/&和及与给*_|)}\"'.]|and", "", text[last:start]):
        return True
    clause = re.split(r"[\n;。!?|}]", text[max(0, start - 200) : start])[-1].strip(_DECORATION)
    clause = re.sub(r"^\(?\d{1,2}[.、)]?\s*", "", clause).strip(_DECORATION)
    if len(clause) > 24:
        return False
    return not _BEFORE.sub("", clause) or bool(_AGAIN.search(clause) and not _TOLD.search(clause))


def _read(text: str, match: re.Match) -> _Mention | None:
    """The verdict at a match, None where the number counts something else."""
    label, end, fill = int(_number(match["label"])), match.end(), match["fill"]
    # What a row is rated out of may stand in the head of another table than the one it was copied from.
    said = text[match.start() : match.end("number")] if "=>" in fill else match[0]
    explicit = bool(match["unit"] or match["of"])
    if _RANGE.match(text, match.end("number")):
        return _Mention(label, None, "a range is no score", said)
    ends = bool(_ENDS.match(text, end))
    if not ends and (not match["number"][0].isdigit() or (not explicit and _COUNTED.match(text, end))):
        return None  # 十分准确 is an adverb, 3 处 counts mistakes
    if re.search(r"[(\n]", fill) and not _TITLE.search(fill) and not explicit and not _LINE_END.match(text, end):
        return None  # (1) and, on a line of its own, 1. begin a list
    if match["number"] == "1" and not explicit and not ends and text[end] in ".、":
        return None
    return _Mention(label, *_value(match), said, weak=not explicit and not ends)


def _second(text: str, match: re.Match) -> _Mention | None:
    """What the line goes on to say about the score at `match`: corrected, or a reason to ask again."""
    tail = text[match.end() : match.end() + 300].partition("\n")[0]
    tail = _QUOTED.sub("", _ANY_LABEL.split(tail, maxsplit=1)[0])
    found = _SECOND.search(tail)
    if not found or _TOLD.search(tail[: found.start()]):  # 它要求改为 10 分 is what the answer wants
        return None
    label = int(_number(match["label"]))
    if found["revised"] and found["unit"] and (score := _number(found["number"])) <= 10:
        return _Mention(label, score, "", found[0])
    return _Mention(label, None, "two scores in one line", found[0])


def _value(match: re.Match) -> tuple[float | None, str]:
    """(score from 0 to 10, "") or (None, what is wrong). Rescaled only where the denominator is written."""
    number = _number(match["number"]) * (-1 if match["sign"] in ("-", "−") else 1)
    most = _number(match["of"] or "10")
    if most not in (5, 10, 20, 50, 100):
        return None, f"a score out of {most:g}"
    if not 0 <= number <= most:
        return None, f"{number:g} is not between 0 and {most:g}"
    return abs(number) * 10 / most, ""  # -0 is 0


def _number(text: str) -> float:
    """7.5 of "7.5" or "七点五", 85 of "八十五"."""
    tens, ten, rest = text.translate(_IN_ASCII).rpartition("十")
    return (10 * float(tens or 1) if ten else 0) + float(rest or 0)


def _tables_as_lines(text: str) -> str:
    """The text, each table row that says a score of a system in one form: System1=>8, System1=>80/100."""
    return _TABLE.sub(lambda block: "\n".join(_rows_as_lines(block[0].split("\n"))), text)


def _rows_as_lines(lines: Sequence[str]) -> Iterator[str]:
    rows = [_cells(line) for line in lines]
    header = next((row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)), rows[0])
    across = [_ANY_LABEL.fullmatch(cell) for cell in header]
    is_sideways = sum(map(bool, across)) > 1
    columns = [place for place, cell in enumerate(header) if _TITLE.search(cell)]
    for line, row in zip(lines, rows, strict=True):
        if is_sideways and _TITLE.search(row[0]):
            said = [(label[0], cell, row[0]) for label, cell in zip(across, row, strict=False) if label]
        else:
            said = _row_score(row, header, columns)
        scores = [f"{label}=>{cell}{_out_of(title)}" for label, cell, title in said if _CELL.fullmatch(cell)]
        yield "\n".join(scores) or line


def _cells(line: str) -> list[str]:
    return [cell.strip(" \t*_`") for cell in line.strip(" \t").removeprefix("|").removesuffix("|").split("|")]


def _out_of(title: str) -> str:
    most = re.search(r"(?:/|满分)\s*(\d+)", title)
    return f"/{most[1]}" if most else ""


def _row_score(row: Sequence[str], header: Sequence[str], columns: Sequence[int]) -> list[tuple[str, str, str]]:
    """[(label, score, title of its column)] of a row: from the one score column, else the one column behind the label
    with a number. Empty without a label, or without such a column."""
    is_numbered = row[0].isdigit()
    if is_numbered and re.fullmatch(r"系[统統]|system", header[0], re.IGNORECASE):
        row = [f"System{row[0]}", *row[1:]]
    at = next((at for at, cell in enumerate(row[: 1 + is_numbered]) if _ANY_LABEL.fullmatch(cell)), None)
    if at is None:
        return []
    places = columns or [place for place in range(at + 1, len(row)) if _CELL.fullmatch(row[place])]
    if len(places) != 1 or places[0] >= min(len(row), len(header)):
        return []
    return [(row[at], row[places[0]], header[places[0]])]
