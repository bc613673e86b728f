"""People as judges: a blind sheet a rater (CSV, and a page that writes the same CSV), and the filled sheets read back.

A row is known by its id alone; whose answer it is stands nowhere in the sheet, and each rater sees the answers to a
prompt in another order.
"""

import codecs
import csv
import hashlib
import html
import io
import json
import random
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from utils import stats
from utils.checks import MOST_RATERS
from utils.errors import DataFault
from utils.files import write_atomic, write_json
from utils.judging import Item
from utils.scores import Columns

NAME = "people.json"
_FIELDS = ("id", "category", "prompt", "answer", "score")
Answer = tuple[int, str]  # place of the item, system


def write(output_dir: str, items: Sequence[Item], raters: int, seed: int) -> list[Path]:
    """Write and return sheet-K.csv and sheet-K.html of each rater. A file that is there may be filled: it stays."""
    written = []
    for rater in range(1, raters + 1):
        rows = list(_rows(items, rater, seed))
        for path, content in ((f"sheet-{rater}.csv", _csv(rows)), (f"sheet-{rater}.html", _page(rows, rater))):
            target = Path(output_dir) / path
            if target.exists():
                print(f"{target} is there already, kept")
                continue
            write_atomic(target, content)
            written.append(target)
    return written


def _rows(items: Sequence[Item], rater: int, seed: int) -> Iterator[dict[str, str]]:
    chance = random.Random(f"{seed}/rater {rater}")
    for item in items:
        systems = list(item.answers)
        chance.shuffle(systems)
        for system in systems:
            name = _id(item, system, rater, seed)
            yield dict(zip(_FIELDS, (name, item.category, item.question, item.answers[system], ""), strict=True))


def _id(item: Item, system: str, rater: int, seed: int) -> str:
    """Begins with a letter, so that no spreadsheet takes it for a number. Of the texts too: what was filled in about
    other answers fits no sheet of these, nor does what the browser has kept of it."""
    text = json.dumps([seed, rater, system, item.category, item.number, item.question, item.answers[system]])
    return "a" + hashlib.sha256(text.encode()).hexdigest()[:12]


def _csv(rows: Sequence[Mapping[str, str]]) -> str:
    """With a BOM, for Excel; a text that a spreadsheet would run as a formula gets an apostrophe before it."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _FIELDS, lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"'{text}" if text[:1] in "=+-@\t\r" and text else text for key, text in row.items()})
    return "\ufeff" + file.getvalue()


# --- Back again ---


def collect(output_dir: str, items: Sequence[Item], seed: int, sheets: Sequence[str]) -> list[str]:
    """Read filled sheets into people.json; returns what stays unrated. Raises DataFault naming file:line."""
    known = {
        _id(item, system, rater, seed): (rater, (place, system))
        for rater in range(1, MOST_RATERS + 1)
        for place, item in enumerate(items)
        for system in item.answers
    }
    raters: dict[int, tuple[str, dict[Answer, float]]] = {}
    for path in sheets:
        rater, ratings = _read(path, known)
        if rater in raters:
            raise DataFault(f"{path}: the sheet of rater {rater} is given twice (also {raters[rater][0]})")
        raters[rater] = (path, ratings)
    wanted = [(place, system) for place, item in enumerate(items) for system in item.answers]
    write_json(Path(output_dir) / NAME, {
        f"rater {rater}": {"sheet": path, "ratings": [_rating(items, *answer, ratings[answer]) for answer in ratings]}
        for rater, (path, ratings) in sorted(raters.items())
    })  # fmt: skip
    return [f"{p}: {len(wanted) - len(r)} of {len(wanted)} answers" for p, r in raters.values() if len(r) < len(wanted)]


def _rating(items: Sequence[Item], place: int, system: str, score: float) -> dict:
    return {"category": items[place].category, "number": items[place].number, "system": system, "score": score}


def _read(path: str, known: Mapping[str, tuple[int, Answer]]) -> tuple[int, dict[Answer, float]]:
    """(rater, {answer: score}) of one sheet; an empty score is none."""
    ratings: dict[Answer, float] = {}
    rater, seen = 0, set()
    for line, name, text in _lines(path):
        if name not in known:
            raise DataFault(f'{path}:{line}: the id "{name}" is in no sheet of this folder')
        if name in seen:
            raise DataFault(f"{path}:{line}: the id {name} stands twice")
        seen.add(name)
        if rater not in (0, known[name][0]):
            raise DataFault(f"{path}:{line}: a row of rater {known[name][0]} in the sheet of rater {rater}")
        rater = known[name][0]
        if text:
            ratings[known[name][1]] = _score(f"{path}:{line}", text)
    if not rater:
        raise DataFault(f"{path}: no rows")
    return rater, ratings


def _lines(path: str) -> Iterator[tuple[int, str, str]]:
    """(line, id, score) of each row. Excel may have saved GBK or UTF-16, semicolons or tabs: ids and scores are the
    same."""
    raw = Path(path).read_bytes()
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        text = raw.decode("utf-16", "replace")
    else:
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = raw.decode("gb18030", "replace")
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    try:
        fields = [field.strip().lower() for field in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataFault(f"{path}:{reader.line_num}: not CSV: {error}") from None
    if not {"id", "score"} <= set(fields):
        raise DataFault(f"{path}:1: the first line must name the columns id and score")
    for line, row in rows:
        cells = dict.fromkeys(fields, "") | dict(zip(fields, row))
        yield line, cells["id"].strip(), unicodedata.normalize("NFKC", cells["score"]).strip()


def _score(where: str, text: str) -> float:
    text = text.removesuffix("分").replace(",", ".")
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) > 10:
        raise DataFault(f'{where}: the score "{text[:20]}" is no number from 0 to 10')
    return float(text)


def read(output_dir: str, items: Sequence[Item]) -> tuple[Columns, str] | None:
    """The raters' mean scores that collect has written, a column a system, None where one of them gave none; and a note
    on the raters. None where nothing was collected. Raises DataFault for a people.json about other items."""
    path = Path(output_dir) / NAME
    if not path.exists():
        return None
    places = {(item.category, item.number): place for place, item in enumerate(items)}
    try:
        raters = [
            {(places[r["category"], r["number"]], r["system"]): float(r["score"]) for r in rater["ratings"]}
            for rater in json.loads(path.read_text(encoding="utf-8")).values()
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataFault(f"{path} does not fit items.json: {error!r}; collect the sheets again") from None
    answers = [(place, system) for place, item in enumerate(items) for system in item.answers]
    common = [answer for answer in answers if all(answer in rater for rater in raters)]
    columns: Columns = {system: [None] * len(items) for system in items[0].answers}
    for place, system in common:
        columns[system][place] = fmean(rater[place, system] for rater in raters)
    return columns, _rater_note(raters, common)


def _rater_note(raters: Sequence[Mapping[Answer, float]], common: Sequence[Answer]) -> str:
    kappa = stats.mean_kappa([[rater[answer] for answer in common] for rater in raters])
    between = "" if kappa is None else f"; weighted kappa between them {kappa:.2f}"
    number = "One rater" if len(raters) == 1 else f"Mean of {len(raters)} raters"
    return f"{number}, over the {len(common)} answers that each of them scored{between}."


# --- The page ---

_PAGE = """<!DOCTYPE html>
<html lang="zh"><head><meta charset="utf-8"><title>sheet {rater}</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
body {{ font: 16px/1.6 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em; color: #222 }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; margin: 0 }}
section {{ border-top: 2px solid #888; margin-top: 2em; padding-top: 1em }}
article {{ border-left: 4px solid #ccc; margin: 1em 0; padding: .2em 1em }}
article:has(input:user-invalid) {{ border-color: #c00 }}
article:has(input:valid:not(:placeholder-shown)) {{ border-color: #393 }}
header {{ position: sticky; top: 0; background: #fff; padding: .5em 0 }}
</style></head><body>
<header><button id="save">保存为 CSV / Save as CSV</button> <span id="count"></span></header>
<p>请给每个答案打 0 到 10 分（可用小数）。填写的内容保存在本浏览器中，完成后请保存为 CSV。<br>
Give each answer 0 to 10 points (fractions allowed). Save as CSV at the end.</p>
{sections}
<script>
const inputs = [...document.querySelectorAll("input")], store = "sheet {rater} {first}";
const filled = JSON.parse(localStorage.getItem(store) || "{{}}");
const show = () => count.textContent = inputs.filter(i => i.value !== "").length + " / " + inputs.length;
inputs.forEach(i => {{
  i.value = filled[i.id] || "";
  i.oninput = () => {{ filled[i.id] = i.value; localStorage.setItem(store, JSON.stringify(filled)); show(); }};
}});
save.onclick = () => {{
  const bad = inputs.find(i => !i.checkValidity());
  if (bad) return bad.reportValidity();
  const link = document.createElement("a");
  const text = "id,score\\r\\n" + inputs.map(i => i.id + "," + i.value + "\\r\\n").join("");
  link.href = URL.createObjectURL(new Blob([text], {{type: "text/csv"}}));
  link.download = "sheet-{rater}.csv";
  link.click();
}};
show();
</script></body></html>
"""


def _page(rows: Sequence[Mapping[str, str]], rater: int) -> str:
    parts, before, number = [], None, 0
    for row in rows:
        if (row["category"], row["prompt"]) != before:
            before, number = (row["category"], row["prompt"]), 0
            head = f"{html.escape(row['category'])}"
            parts.append(f"</section><section><h2>{head}</h2><pre><b>{html.escape(row['prompt'])}</b></pre>")
        number += 1
        field = f'<input id="{row["id"]}" type="number" min="0" max="10" step="any" placeholder=" ">'
        parts.append(f"<article><pre>{html.escape(row['answer'])}</pre><p>{number}. {field} / 10</p></article>")
    sections = "\n".join(parts).removeprefix("</section>") + "</section>"
    return _PAGE.format(rater=rater, sections=sections, first=rows[0]["id"])
