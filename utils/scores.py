"""From verdicts to numbers: a score a prompt and system, categories with their intervals, and what may distort them.

A column is a system's scores from 0 to 10, one a prompt in the order of the items, None where there is none.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import comb
from statistics import fmean

from utils import stats
from utils.judging import Call, Item
from utils.verdicts import Key, Parsed

Columns = dict[str, list[float | None]]
TOTAL = "total"
MOVED = 3.0  # points that one answer's score moves between places
GAP = 0.5  # points between the mean scores of two places, below which a preference is of no account


def columns(items: Sequence[Item], calls: Iterable[Call], verdicts: Mapping[Key, Parsed]) -> Columns:
    """The mean of a prompt's calls; None unless all of them gave scores, for then the places are not balanced."""
    by_item = _by_item(calls, verdicts)
    result: Columns = {system: [] for system in items[0].answers}
    for item in items:
        turns = by_item[item.category, item.number]
        for system, column in result.items():
            column.append(fmean(turn[system] for turn in turns) if all(turns) else None)
    return result


def _by_item(calls: Iterable[Call], verdicts: Mapping[Key, Parsed]) -> dict[tuple[str, int], list[dict[str, float]]]:
    """{prompt: for each of its calls {system: score} in the order of the places, empty where there are no scores}."""
    turns: dict[tuple[str, int], list[dict[str, float]]] = {}
    for call in calls:
        verdict = verdicts.get(call.key)
        scored = dict(zip(call.order, verdict.scores, strict=True)) if verdict and verdict.scores else {}
        turns.setdefault((call.item.category, call.item.number), []).append(scored)
    return turns


def cells(items: Sequence[Item], scores: Columns) -> dict[str, dict[str, dict]]:
    """{category, and "total": {system: {"score", "low", "high" (of 100, 95% interval), "n_ok", "n_total"}}}.

    score, low and high are None where no prompt has a score.
    """
    return {
        category: {system: _cell([column[place] for place in places]) for system, column in scores.items()}
        for category, places in _categories(items).items()
    }


def _cell(column: Sequence[float | None]) -> dict:
    known = [score for score in column if score is not None]
    counts = {"n_ok": len(known), "n_total": len(column)}
    if not known:
        return {"score": None, "low": None, "high": None} | counts
    mean, low, high = stats.mean_interval(known)
    within = {"low": round(max(0.0, low * 10), 2), "high": round(min(100.0, high * 10), 2)}
    return {"score": round(mean * 10, 2)} | within | counts


def _categories(items: Sequence[Item]) -> dict[str, list[int]]:
    """{category: places of its prompts}, and all of them under "total" where there is more than one category."""
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.category, []).append(place)
    return places | ({TOTAL: list(range(len(items)))} if len(places) > 1 else {})


def ranks(items: Sequence[Item], scores: Columns) -> dict[str, list[list[str]]]:
    """{category, and "total": groups of systems from best to worst that cannot be told apart within}."""
    return {
        category: stats.groups({system: [column[place] for place in places] for system, column in scores.items()})
        for category, places in _categories(items).items()
    }


def position(calls: Iterable[Call], verdicts: Mapping[Key, Parsed]) -> dict:
    """What the place does to the score, where each system stood in each place.

    {"means": by place, "gap": the largest between two, "flagged": whether it is beyond chance and GAP, "moved": each
    answer whose scores differ by MOVED or more}, over the prompts with all their calls.
    """
    whole = {item: turns for item, turns in _by_item(calls, verdicts).items() if all(turns)}
    if not whole:
        return {"means": [], "gap": None, "flagged": False, "moved": []}
    places = [list(map(fmean, zip(*(turn.values() for turn in turns), strict=True))) for turns in whole.values()]
    by_place = list(zip(*places, strict=True))
    means = list(map(fmean, by_place))
    best, worst = by_place[means.index(max(means))], by_place[means.index(min(means))]
    gap, error = max(means) - min(means), 0.05 / max(1, comb(len(means), 2))
    return {
        "means": [round(mean, 3) for mean in means],
        "gap": round(gap, 3),
        "flagged": gap >= GAP and stats.differ(best, worst, error),
        "moved": [moved for item, turns in whole.items() for moved in _moved(*item, turns)],
    }


def _moved(category: str, number: int, turns: Sequence[dict[str, float]]) -> Iterable[dict]:
    for system in turns[0]:
        given = [turn[system] for turn in turns]
        if max(given) - min(given) >= MOVED:
            yield {"category": category, "number": number, "system": system, "low": min(given), "high": max(given)}


def characters(items: Sequence[Item]) -> dict[str, float]:
    """Mean characters an answer of each system."""
    return {system: round(fmean(len(item.answers[system]) for item in items), 1) for system in items[0].answers}


def length(items: Sequence[Item], scores: Columns) -> dict:
    """Rank correlation of an answer's length with its score: {system: over its prompts}, and "within_prompts": over all
    answers, length and score each less their mean of the prompt, which leaves out that some prompts are harder."""
    result: dict[str, float | None] = {}
    inner: list[tuple[float, float]] = []
    for system, column in scores.items():
        pairs = [(len(item.answers[system]), score) for item, score in zip(items, column) if score is not None]
        result[system] = _rounded(stats.rank_correlation([a for a, _ in pairs], [b for _, b in pairs]))
    for place, item in enumerate(items):
        known = {system: column[place] for system, column in scores.items() if column[place] is not None}
        lengths = {system: len(item.answers[system]) for system in known}
        inner += [(lengths[s] - fmean(lengths.values()), known[s] - fmean(known.values())) for s in known]
    result["within_prompts"] = _rounded(stats.rank_correlation([a for a, _ in inner], [b for _, b in inner]))
    return result


def agreement(judges: Mapping[str, Columns]) -> list[dict]:
    """For each two judges (people among them): rank correlation and weighted kappa over the answers both scored."""
    found = []
    for one, other in combinations(judges, 2):
        pairs = [
            (a, b)
            for system in judges[one]
            for a, b in zip(judges[one][system], judges[other][system], strict=True)
            if a is not None and b is not None
        ]
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        found.append({
            "between": [one, other],
            "rank_correlation": _rounded(stats.rank_correlation(first, second)),
            "weighted_kappa": _rounded(stats.weighted_kappa(first, second)),
            "answers": len(pairs),
        })  # fmt: skip
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def is_own_judge(judge: str, system: str) -> bool:
    """Whether a judge's model and a candidate look like the same: GPT-4 and gpt-4-0613, ChatGPT and gpt-3.5-turbo."""
    one, other = ("".join(filter(str.isalnum, name.lower())) for name in (judge, system))
    alike = min(len(one), len(other)) > 3 and (one in other or other in one)
    return alike or (other == "chatgpt" and one.startswith("gpt"))
