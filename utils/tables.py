"""table.json and table.md: a section a judge in the original's shape, with what puts its scores in doubt."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from utils import scores
from utils.files import write_atomic, write_json
from utils.judging import Item, listed
from utils.verdicts import Verdicts

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


def build(items: Sequence[Item], judges: Mapping[str, Verdicts], people: scores.Columns) -> dict:
    """The table as JSON: {judge: {category: {system: cell}}} (scores.cells), and beside the judges "ranks", "position",
    "length", "agreement", "unjudged", "revised", "own_judge", each by judge. people: their mean scores, or {}."""
    columns = {judge: scores.columns(given) for judge, given in judges.items()} | ({PEOPLE: people} if people else {})
    lengths = {judge: scores.length(items, own) for judge, own in columns.items()}
    return {judge: scores.cells(items, own) for judge, own in columns.items()} | {
        "ranks": {judge: scores.ranks(items, own) for judge, own in columns.items()},
        "position": {judge: scores.position(given) for judge, given in judges.items() if given[0][0].mode == "robust"},
        "length": {"characters": scores.characters(items)} | lengths,
        "agreement": scores.agreement(columns),
        "unjudged": {
            judge: [f"{call.name}: {verdict.problem}" for call, verdict in given if verdict.scores is None]
            for judge, given in judges.items()
        },
        "revised": {judge: sum(len(verdict.revised) for _, verdict in given) for judge, given in judges.items()},
        "own_judge": {judge: [s for s in items[0].answers if scores.is_own_judge(judge, s)] for judge in judges},
    }


def write(output_dir: str, table: dict, rater_note: str) -> None:
    """Write table.json and table.md. rater_note: a line to stand below the people's table."""
    parts = ["# Scores", _LEGEND]
    for judge, ranks in table["ranks"].items():
        lines = [*_doubts(judge, table), *([rater_note] if judge == PEOPLE else [])]
        parts += [f"## {judge}", markdown(table[judge], ranks), "\n".join(f"- {line}" for line in lines)]
    parts += ["## Agreement", _agreement(table["agreement"])] if table["agreement"] else []
    _write(output_dir, "table", table, parts)


def write_auto(output_dir: str, items: Sequence[Item], columns: scores.Columns) -> None:
    """Write auto.json ({category: {system: cell}}) and auto.md: scores against references, without a judge."""
    cells = scores.cells(items, columns)
    parts = ["# Scores against references", _LEGEND, markdown(cells, scores.ranks(items, columns))]
    _write(output_dir, "auto", cells, parts)


def _write(output_dir: str, name: str, value: dict, parts: Sequence[str]) -> None:
    write_json(Path(output_dir) / f"{name}.json", value)
    write_atomic(Path(output_dir) / f"{name}.md", "\n\n".join(parts) + "\n")


def markdown(cells: Mapping[str, Mapping[str, dict]], ranks: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """One judge's table, the original's shape: category, file, prompts judged, a column a system."""
    systems = list(next(iter(cells.values())))
    rows = [["category", "file", "judged", *systems], ["---"] * (3 + len(systems))]
    for category, row in cells.items():
        shown = [_shown(system, row[system], ranks[category]) for system in systems]
        file = "" if category == scores.TOTAL else category
        rows.append([NAMES.get(category, category.lstrip("0123456789") or category), file, _judged(row), *shown])
    return _rows(rows)


def _judged(row: Mapping[str, dict]) -> str:
    counts = [cell["n_ok"] for cell in row.values()]
    span = "-".join(map(str, sorted({min(counts), max(counts)})))
    return f"{span}/{max(cell['n_total'] for cell in row.values())}"


def _shown(system: str, cell: dict, groups: Sequence[Sequence[str]]) -> str:
    """A system's score with its interval, marked as best, second best, or one that its group cannot be told from."""
    if cell["score"] is None:
        return "–"
    half = max(cell["score"] - cell["low"], cell["high"] - cell["score"])  # one side may be cut at 0 or 100
    text = f"{cell['score']:.4g} ± {f'{half:.1f}' if cell['n_ok'] > 1 else '?'}"
    place = next(place for place, group in enumerate(groups) if system in group)
    if len(groups) > 1 and place < 2:
        text = rf"{text} \*" if place else f"**{text}**"
    return text + " ≈" * (len(groups[place]) > 1)


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
    harmless = "no more than chance, or too small to matter"
    verdict = "**the place changes the score**" if position["flagged"] else harmless
    yield f"Mean score by place (System1 first): {means}; largest gap {position['gap']:.2f}: {verdict}."
    if moved := position["moved"]:
        shown = listed(f"{m['category']} {m['number']} {m['system']} ({m['low']:g} to {m['high']:g})" for m in moved)
        yield f"{len(moved)} answers move by {scores.MOVED:g} points or more between places: {shown} (all: table.json)."


def _agreement(pairs: Sequence[dict]) -> str:
    rows = [["between", "rank correlation", "weighted kappa", "answers"], ["---"] * 4]
    for pair in pairs:
        numbers = _number(pair["rank_correlation"]), _number(pair["weighted_kappa"]), str(pair["answers"])
        rows.append([" – ".join(pair["between"]), *numbers])
    return _rows(rows)


def _rows(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
