"""People as judges: a blind sheet a rater (CSV, and a page that writes the same CSV), and the filled sheets read back.

A row is known by its id alone; whose answer it is stands nowhere in the sheet, and each rater sees the answers to a
prompt in another order.
"""

import csv
import hashlib
import html
import io
import json
import random
import re
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from string import Template

from utils import stats
from utils.checks import MOST_RATERS
from utils.errors import DataFault
from utils.files import write_atomic, write_json
from utils.judging import Item
from utils.scores import Columns

NAME = "people.json"
_FIELDS = ("id", "category", "prompt", "answer", "score")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write(output_dir: str, items: Sequence[Item], raters: int, seed: int) -> list[Path]:
    """Write and return sheet-K.csv and sheet-K.html of each rater. A file that is there may be filled: it stays."""
    written = []
    for rater in range(1, raters + 1):
        rows = list(_rows(items, rater, seed))
        for kind, content in (("csv", _csv(rows)), ("html", _page(rows, rater))):
            path = Path(output_dir) / f"sheet-{rater}.{kind}"
            if path.exists():
                print(f"{path} is there already, kept")
            else:
                write_atomic(path, content)
                written.append(path)
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
        writer.writerow({key: f"'{text}" if text.startswith(_FORMULA) else text for key, text in row.items()})
    return "\ufeff" + file.getvalue()


def _page(rows: Sequence[Mapping[str, str]], rater: int) -> str:
    sections = []
    for (category, prompt), own in groupby(rows, key=itemgetter("category", "prompt")):
        sections.append(f"<section><h2>{html.escape(category)}</h2><pre><b>{html.escape(prompt)}</b></pre>")
        for number, row in enumerate(own, 1):
            field = f'<input id="{row["id"]}" type="number" min="0" max="10" step="any" placeholder=" ">'
            sections.append(f"<article><pre>{html.escape(row['answer'])}</pre><p>{number}. {field} / 10</p></article>")
        sections.append("</section>")
    page = Template(Path(__file__).with_name("sheet.html").read_text(encoding="utf-8"))
    return page.substitute(rater=rater, sections="\n".join(sections), first=rows[0]["id"])


# --- Back again ---


def read_filled(output_dir: str, items: Sequence[Item], seed: int, sheets: Sequence[str]) -> list[str]:
    """Read the files `sheets` into people.json; returns what stays unrated. Raises DataFault naming file:line."""
    answers = [(item, system) for item in items for system in item.answers]
    raters = range(1, MOST_RATERS + 1)
    known = {_id(*answer, rater, seed): (rater, answer) for rater in raters for answer in answers}
    collected: dict[str, dict] = {}
    for path in sheets:
        rater, ratings = _read(path, known)
        if before := collected.get(f"rater {rater}"):
            raise DataFault(f"{path}: the sheet of rater {rater} is given twice (also {before['sheet']})")
        collected[f"rater {rater}"] = {"sheet": path, "ratings": ratings}
    write_json(Path(output_dir) / NAME, collected)
    unrated = {own["sheet"]: len(answers) - len(own["ratings"]) for own in collected.values()}
    return [f"{path}: {missing} of {len(answers)} answers" for path, missing in unrated.items() if missing]


def _read(path: str, known: Mapping[str, tuple[int, tuple[Item, str]]]) -> tuple[int, list[dict]]:
    """(rater, [{"category", "number", "system", "score"}]) of one sheet; an empty score is none."""
    ratings, seen = [], set()
    rater = 0
    for line, name, text in _lines(path):
        if name not in known:
            raise DataFault(f'{path}:{line}: the id "{name}" is in no sheet of this folder')
        if name in seen:
            raise DataFault(f"{path}:{line}: the id {name} stands twice")
        seen.add(name)
        owner, (item, system) = known[name]
        rater = rater or owner
        if owner != rater:
            raise DataFault(f"{path}:{line}: a row of rater {owner} in the sheet of rater {rater}")
        if text:
            score = _score(f"{path}:{line}", text)
            ratings.append({"category": item.category, "number": item.number, "system": system, "score": score})
    if not rater:
        raise DataFault(f"{path}: no rows")
    return rater, ratings


def _lines(path: str) -> Iterator[tuple[int, str, str]]:
    """(line, id, score) of each row. Excel may have saved GBK or UTF-16, semicolons or tabs: ids and scores are the
    same."""
    raw = Path(path).read_bytes()
    try:
        text = raw.decode("utf-16" if raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("gb18030", "replace")
    separator = max(",;\t", key=text.partition("\n")[0].count)
    rows = csv.DictReader(io.StringIO(text, newline=""), restval="", delimiter=separator)
    try:
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
        if not {"id", "score"} <= set(rows.fieldnames):
            raise DataFault(f"{path}:1: the first line must name the columns id and score")
        for row in rows:
            name, score = row["id"].strip(), unicodedata.normalize("NFKC", row["score"]).strip()
            if name or score:
                yield rows.line_num, name, score
    except csv.Error as error:
        raise DataFault(f"{path}:{rows.line_num}: not CSV: {error}") from None


def _score(where: str, text: str) -> float:
    text = text.removesuffix("分").replace(",", ".")
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) > 10:
        raise DataFault(f'{where}: the score "{text[:20]}" is no number from 0 to 10')
    return float(text)


def read_people(output_dir: str, items: Sequence[Item]) -> tuple[Columns, str]:
    """The raters' mean scores of people.json, a column a system, None where one of them gave none; and a note
    on the raters. ({}, "") where nothing was collected. Raises DataFault for a people.json about other items."""
    path = Path(output_dir) / NAME
    if not path.exists():
        return {}, ""
    places = {(item.category, item.number): place for place, item in enumerate(items)}
    try:
        raters = [
            {(r["system"], places[r["category"], r["number"]]): float(r["score"]) for r in rater["ratings"]}
            for rater in json.loads(path.read_text(encoding="utf-8")).values()
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataFault(f"{path} does not fit items.json: {error!r}; collect the sheets again") from None
    common = set.intersection(*map(set, raters))
    columns = {
        system: [
            fmean(rater[system, place] for rater in raters) if (system, place) in common else None
            for place in range(len(items))
        ]
        for system in items[0].answers
    }
    kappa = stats.mean_kappa([[rater[answer] for answer in sorted(common)] for rater in raters])
    between = "" if kappa is None else f"; weighted kappa between them {kappa:.2f}"
    number = "One rater" if len(raters) == 1 else f"Mean of {len(raters)} raters"
    return columns, f"{number}, over the {len(common)} answers that each of them scored{between}."
