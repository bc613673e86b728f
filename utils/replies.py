"""A judge's reply into scores: one number from 0 to 10 for each of System1 … SystemN, or the reason why not.

Judges write scores in many forms, and quote the answers they judge. So only a label at the start of a line or a
clause, directly followed by a number, is a verdict; a number that counts something is not; what stands in quotation
marks, or word for word in a judged answer, moves nothing. Where two readings are possible there is none: the judge is
asked again.
"""

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_DIGITS = "零〇一二两三四五六七八九十"
_NUMBER = rf"\d+(?:\.\d+)?|[{_DIGITS}]+(?:点[{_DIGITS}]+)?"
_LABEL = r"(?:system|系[统統])\s*[#_\-]?\s*(?P<label>\d{1,3}|[一二三四五六七八九十])(?!\d)"
_SCORE_WORD = r"分数|评分|得分|打分|总分|scored?|rating"
# What may stand between a label and its number. Possessive (*+): a hostile reply cannot make it search for ever.
_FILL = (
    rf"(?:\s-+\s|[—–]+|{_SCORE_WORD}|最终|最后|总体|综合|修正|更新|调整|改|后|的|评|打|得|给|我|应|该|为|是|成"
    r"|final|revised|gets|receives|'s\b|[\s*_`\"'\]】」:=>#{(])*+"
)
_UNIT = r"\s*(?:分(?![钟之点析别段类数制中里米])|points?\b|pts?\b)"
_DENOMINATOR = (
    r"[\s*_`]*(?:\(?\s*(?:/|out of|满分|总分|共)\s*(?:为|是)?\s*(?P<of>\d+)\s*分?\s*\)?|\(\s*(?P<of2>\d+)\s*分制\s*\))"
)
_VERDICT = re.compile(
    rf"{_LABEL}(?P<fill>{_FILL})(?P<sign>[-−+])?(?P<number>{_NUMBER})(?P<unit>{_UNIT})?(?:{_DENOMINATOR})?",
    re.IGNORECASE,
)
_CELL = re.compile(rf"(?P<sign>[-−+])?(?P<number>{_NUMBER})(?P<unit>{_UNIT})?(?:{_DENOMINATOR})?", re.IGNORECASE)
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

    position: int
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
    said = [_squeezed(answer) for answer in answers]
    mentions = sorted(_mentions(text), key=lambda mention: mention.position)
    borrowed = {mention for mention in mentions if any(_squeezed(mention.text) in answer for answer in said)}
    for mention in mentions:
        if not 1 <= mention.label <= systems and mention not in borrowed:
            return Parsed(None, f"System{mention.label} of {systems}")
    scores, revised = [], []
    for label in range(1, systems + 1):
        own = [mention for mention in mentions if mention.label == label]
        own = [mention for mention in own if not mention.weak] or own
        if len({mention.score for mention in own}) > 1:
            own = [mention for mention in own if mention not in borrowed]
            if not own:
                return Parsed(None, f"System{label}: its scores stand in a judged answer")
        if not own or own[-1].problem:
            return Parsed(None, f"System{label}: {own[-1].problem if own else 'no score'}")
        scores.append(own[-1].score)
        revised += [label] * (len({mention.score for mention in own}) > 1)
    return Parsed(scores, revised=tuple(revised))


def without_thoughts(reply: str) -> str:
    """The reply without <think>…</think>, also where the opening mark, or the end, is missing."""
    kept: list[str] = []
    thinking = False
    for part in re.split(r"(</?think>)", reply, flags=re.IGNORECASE):
        if part.lower() == "</think>":
            kept, thinking = kept if thinking else [], False
        elif part.lower() == "<think>":
            thinking = True
        elif not thinking:
            kept.append(part)
    return "".join(kept)


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).lower()


def _mentions(text: str) -> Iterator[_Mention]:
    quoted = _QUOTED.sub(lambda match: " " * len(match[0]) if _holds_verdict(match[0]) else match[0], text)
    text, last = quoted, 0
    for mention in [mention for start, block in _tables(quoted) for mention in _table_mentions(start, block)]:
        yield mention
        end = (quoted + "\n").index("\n", mention.position)
        text = text[: mention.position] + " " * (end - mention.position) + text[end:]
    for match in _VERDICT.finditer(text):
        if _stands_first(text, match.start(), last) and (mention := _read(text, match)):
            yield mention
            yield from _second(text, match)
            last = match.end()


def _second(text: str, match: re.Match) -> Iterator[_Mention]:
    """What the line goes on to say about the score at `match`: corrected, or a reason to ask again."""
    tail = text[match.end() : match.end() + 300].partition("\n")[0]
    tail = _QUOTED.sub("", _ANY_LABEL.split(tail, maxsplit=1)[0])
    found = _SECOND.search(tail)
    if not found or _TOLD.search(tail[: found.start()]):  # 它要求改为 10 分 is what the answer wants
        return
    score = _decimal(found["number"]) if found["revised"] and found["unit"] else math.inf
    given = (score, "") if score <= 10 else (None, "two scores in one line")
    yield _Mention(match.end(), _whole(match["label"]), *given, found[0])


def _holds_verdict(text: str) -> bool:
    match = _ANY_LABEL.search(text)
    return bool(match and re.search(rf"[\d{_DIGITS}]", text[match.end() :]))


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
    end, fill = match.end(), match["fill"]
    explicit = bool(match["unit"] or match["of"] or match["of2"])
    if _RANGE.match(text, match.end("number")):
        return _mention(match, None, "a range is no score")
    ends = bool(_ENDS.match(text, end))
    if not ends and (not match["number"][0].isdigit() or (not explicit and _COUNTED.match(text, end))):
        return None  # 十分准确 is an adverb, 3 处 counts mistakes
    alone = re.search(r"[(\n]", fill) and not re.search(_SCORE_WORD, fill, re.IGNORECASE)
    if alone and not explicit and not _LINE_END.match(text, end):
        return None  # (1) and, on a line of its own, 1. begin a list
    if match["number"] == "1" and not explicit and not ends and text[end] in ".、":
        return None
    return _mention(match, *_value(match), weak=not explicit and not ends)


def _mention(match: re.Match, score: float | None, problem: str, weak: bool = False) -> _Mention:
    return _Mention(match.start(), _whole(match["label"]), score, problem, match[0], weak)


def _value(match: re.Match, denominator: str | None = None) -> tuple[float | None, str]:
    """(score from 0 to 10, "") or (None, what is wrong). Rescaled only where the denominator is written."""
    number = _decimal(match["number"]) * (-1 if match["sign"] in ("-", "−") else 1)
    most = int(match["of"] or match["of2"] or denominator or 10)
    if most not in (5, 10, 20, 50, 100):
        return None, f"a score out of {most}"
    if not 0 <= number <= most:
        return None, f"{number:g} is not between 0 and {most}"
    return abs(number) * 10 / most, ""  # -0 is 0


def _decimal(text: str) -> float:
    """7.5 of "7.5" or "七点五"."""
    if text[0].isdigit():
        return float(text)
    whole, _, part = text.partition("点")
    return float(f"{_whole(whole)}.{''.join(str(_whole(digit)) for digit in part) or 0}")


def _whole(text: str) -> int:
    """8 of "8" or "八", 85 of "八十五"."""
    if text.isdigit():
        return int(text)
    values = {digit: number for number, digit in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
    tens, ten, ones = text.rpartition("十")
    number = int("".join(str(values[digit]) for digit in ones) or 0)
    return number + (10 * (values.get(tens, 100) if tens else 1) if ten else 0)


def _tables(text: str) -> Iterator[tuple[int, str]]:
    """(start, text) of each run of two or more lines with bars."""
    for match in re.finditer(r"(?:^[^\n|]*\|[^\n]*(?:\n|$)){2,}", text, re.MULTILINE):
        yield match.start(), match[0]


def _table_mentions(start: int, block: str) -> Iterator[_Mention]:
    rows, lines = [], []
    for line in re.finditer(r"[^\n]+", block):
        cells = [cell.strip(" \t*_`") for cell in line[0].strip(" \t").removeprefix("|").removesuffix("|").split("|")]
        if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            rows.append(cells)
            lines.append(line)
    header = rows[0]
    across = [_ANY_LABEL.fullmatch(cell) for cell in header]
    columns = [place for place, cell in enumerate(header) if re.search(_SCORE_WORD, cell, re.IGNORECASE)]
    for row, line in zip(rows, lines, strict=True):
        if sum(map(bool, across)) > 1 and re.search(_SCORE_WORD, row[0], re.IGNORECASE):
            pairs = [(label, cell, row[0]) for label, cell in zip(across, row, strict=False) if label]
        else:
            pairs = list(_row_verdict(row, header, columns))
        for label, cell, title in pairs:
            if match := _CELL.fullmatch(cell):
                begin = max(0, line[0].find(label[0]))
                end = line[0].index(cell, line[0].index("|", begin + 1)) + len(cell)
                of = re.search(r"(?:/|满分)\s*(\d+)", title)
                score, problem = _value(match, of and of[1])
                yield _Mention(start + line.start(), _whole(label["label"]), score, problem, line[0][begin:end])


def _row_verdict(row: list[str], header: list[str], columns: list[int]) -> Iterator[tuple[re.Match, str, str]]:
    """(label, score, title of its column) of a row with a label: from the one score column, else the one column behind
    the label with a number."""
    under_system = re.fullmatch(r"系[统統]|system", header[0], re.IGNORECASE) and row[0].isdigit()
    cells = [f"System{row[0]}" if under_system else row[0], *(row[1:2] if row[0].isdigit() else ())]
    at, label = next(((at, m) for at, cell in enumerate(cells) if (m := _ANY_LABEL.fullmatch(cell))), (0, None))
    numbers = columns or [place for place in range(at + 1, len(row)) if _CELL.fullmatch(row[place])]
    if label and len(numbers) == 1 and numbers[0] < min(len(row), len(header)):
        yield label, row[numbers[0]], header[numbers[0]]
