"""table.json and table.md: a section a judge in the original's shape, with what puts its scores in doubt."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from utils import scores
from utils.files import write_atomic, write_json
from utils.judging import Call, Item, listed
from utils.verdicts import Key, Parsed

NAMES = {
    "01qa": "knowledge", "02translate": "translation", "03generate": "text generation", "04analyse": "sentiment",
    "05understanding": "reading", "06chinese": "Chinese culture", "07code": "code", "08alignment": "ethics, refusal",
    "09math": "mathematics", "10dialogue": "multi-turn dialogue", scores.TOTAL: "**total**",
}  # fmt: skip
PEOPLE = "people"
_LEGEND = """\
Scores out of 100 (ten times the mean score of a prompt) ± the longer side of their 95% interval over the prompts
(Student's t, longer towards a tail; from 40 prompts on the bootstrap). **Best**, \\* second best. ≈ marks systems of
one group, which are not ranked: a group ends only where every system above can be told from every one below (paired
differences a prompt, 5% for all pairs of a row together); where all are one group, nothing is best. Judged: prompts
with a score / prompts; none is imputed."""


def build(
    items: Sequence[Item],
    calls: Mapping[str, Sequence[Call]],
    verdicts: Mapping[str, Mapping[Key, Parsed]],
    people: scores.Columns | None,
) -> dict:
    """The table as JSON: {judge: {category: {system: cell}}} (scores.cells), and beside the judges "ranks", "position",
    "length", "agreement", "unjudged", "revised", "own_judge", each by judge.

    calls and verdicts: by judge; people: their mean scores, a column a system.
    """
    columns = {judge: scores.columns(items, calls[judge], given) for judge, given in verdicts.items()}
    columns |= {PEOPLE: people} if people else {}
    robust = [judge for judge in verdicts if calls[judge][0].mode == "robust"]
    lengths = {judge: scores.length(items, own) for judge, own in columns.items()}
    return {judge: scores.cells(items, own) for judge, own in columns.items()} | {
        "ranks": {judge: scores.ranks(items, own) for judge, own in columns.items()},
        "position": {judge: scores.position(calls[judge], verdicts[judge]) for judge in robust},
        "length": {"characters": scores.characters(items)} | lengths,
        "agreement": scores.agreement(columns),
        "unjudged": {judge: list(_unjudged(calls[judge], given)) for judge, given in verdicts.items()},
        "revised": {judge: sum(len(v.revised) for v in given.values()) for judge, given in verdicts.items()},
        "own_judge": {judge: [s for s in items[0].answers if scores.is_own_judge(judge, s)] for judge in verdicts},
    }


def _unjudged(calls: Iterable[Call], given: Mapping[Key, Parsed]) -> Iterable[str]:
    for call in calls:
        verdict = given.get(call.key)
        if verdict is None or verdict.scores is None:
            yield f"{call.name}: {verdict.problem if verdict else 'no reply'}"


def write_auto(output_dir: str | Path, items: Sequence[Item], columns: scores.Columns) -> None:
    """Write auto.json ({category: {system: cell}}) and auto.md: scores against references, without a judge."""
    cells = scores.cells(items, columns)
    write_json(Path(output_dir) / "auto.json", cells)
    text = ["# Scores against references", _LEGEND, markdown(cells, scores.ranks(items, columns))]
    write_atomic(Path(output_dir) / "auto.md", "\n\n".join(text) + "\n")


def write(output_dir: str | Path, table: dict, judges: Sequence[str], notes: Mapping[str, Sequence[str]]) -> None:
    """Write table.json and table.md. notes: lines to stand below a judge's table."""
    write_json(Path(output_dir) / "table.json", table)
    parts = ["# Scores", _LEGEND]
    for judge in judges:
        lines = [*_doubts(judge, table), *notes.get(judge, ())]
        parts += [
            f"## {judge}",
            markdown(table[judge], table["ranks"][judge]),
            "\n".join(f"- {line}" for line in lines),
        ]
    parts += ["## Agreement", *_agreement(table["agreement"])] if table["agreement"] else []
    write_atomic(Path(output_dir) / "table.md", "\n\n".join(part for part in parts if part) + "\n")


def markdown(cells: Mapping[str, Mapping[str, dict]], ranks: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """One judge's table, the original's shape: category, file, prompts judged, a column a system."""
    systems = list(next(iter(cells.values())))
    rows = [["category", "file", "judged", *systems], ["---"] * (3 + len(systems))]
    for category, row in cells.items():
        groups = ranks[category]
        shown = [_shown(row[system], *_mark(system, groups)) for system in systems]
        file = "" if category == scores.TOTAL else category
        rows.append([NAMES.get(category, category.lstrip("0123456789") or category), file, _judged(row), *shown])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _judged(row: Mapping[str, dict]) -> str:
    counts = sorted({cell["n_ok"] for cell in row.values()})
    return f"{'-'.join(map(str, sorted({counts[0], counts[-1]})))}/{max(cell['n_total'] for cell in row.values())}"


def _mark(system: str, groups: Sequence[Sequence[str]]) -> tuple[str, str]:
    """(what stands around the score, what stands behind it)."""
    place = next((place for place, group in enumerate(groups) if system in group), None)
    alike = " ≈" if place is not None and len(groups[place]) > 1 else ""
    if len(groups) == 1 or place not in (0, 1):
        return "", alike
    return ("**", alike) if place == 0 else ("", rf" \*{alike}")


def _shown(cell: dict, around: str, behind: str) -> str:
    if cell["score"] is None:
        return "–"
    half = max(cell["score"] - cell["low"], cell["high"] - cell["score"])  # one side may be cut at 0 or 100
    width = f"{half:.1f}" if cell["n_ok"] > 1 else "?"
    return f"{around}{cell['score']:.4g} ± {width}{around}{behind}"


def _doubts(judge: str, table: dict) -> Iterable[str]:
    """What a reader of the judge's table has to know, one line each."""
    if own := table["own_judge"].get(judge):
        yield f"**This judge is also a candidate** ({', '.join(own)}): its scores of itself are no evidence."
    if judge in table["position"]:
        yield from _places(table["position"][judge])
    elif judge != PEOPLE:
        yield "**Position-uncontrolled**: each system always stands in the same place, as in the original's protocol."
    length, characters = table["length"][judge], table["length"]["characters"]
    each = ", ".join(f"{system} {characters[system]:.0f} ({_number(length[system])})" for system in characters)
    within = _number(length["within_prompts"])
    yield f"Mean characters an answer (rank correlation of length and score): {each}; within prompts {within}."
    if revised := table["revised"].get(judge):
        yield f"{revised} scores were revised within a reply; the last one counts."
    if unjudged := table["unjudged"].get(judge):
        yield f"**Unjudged** ({len(unjudged)}, all in table.json): {listed(unjudged, 40)}."


def _places(position: dict) -> Iterable[str]:
    if not position["means"]:
        return
    means = ", ".join(f"{mean:.2f}" for mean in position["means"])
    verdict = (
        "**the place changes the score**" if position["flagged"] else "no more than chance, or too small to matter"
    )
    yield f"Mean score by place (System1 first): {means}; largest gap {position['gap']:.2f}: {verdict}."
    if moved := position["moved"]:
        shown = listed(f"{m['category']} {m['number']} {m['system']} ({m['low']:g} to {m['high']:g})" for m in moved)
        yield f"{len(moved)} answers move by {scores.MOVED:g} points or more between places: {shown} (all: table.json)."


def _agreement(pairs: Sequence[dict]) -> list[str]:
    rows = ["| between | rank correlation | weighted kappa | answers |", "| --- | --- | --- | --- |"]
    for pair in pairs:
        numbers = f"{_number(pair['rank_correlation'])} | {_number(pair['weighted_kappa'])} | {pair['answers']}"
        rows.append(f"| {' – '.join(pair['between'])} | {numbers} |")
    return ["\n".join(rows)]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
