"""From verdicts to numbers: a score a prompt and system, categories with their intervals, and what may distort them.

A column is a system's scores from 0 to 10, one a prompt in the order of the items, None where there is none.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import comb
from statistics import fmean

from utils import stats
from utils.judging import Item
from utils.verdicts import Verdicts

Columns = dict[str, list[float | None]]
TOTAL = "total"
MOVED = 3.0  # points that one answer's score moves between places
GAP = 0.5  # points between the mean scores of two places, below which a preference is of no account


def columns(verdicts: Verdicts) -> Columns:
    """The mean of a prompt's calls; None unless all of them gave scores, for then the places are not balanced."""
    prompts = _by_prompt(verdicts).values()
    return {
        system: [fmean(call[system] for call in calls) if all(calls) else None for calls in prompts]
        for system in verdicts[0][0].item.answers
    }


def _by_prompt(verdicts: Verdicts) -> dict[tuple[str, int], list[dict[str, float]]]:
    """{prompt: for each of its calls {system: score} in the order of the places, empty where there are no scores}."""
    prompts: dict[tuple[str, int], list[dict[str, float]]] = {}
    for call, verdict in verdicts:
        scored = dict(zip(call.order, verdict.scores or ()))
        prompts.setdefault((call.item.category, call.item.number), []).append(scored)
    return prompts


def cells(items: Sequence[Item], scores: Columns) -> dict[str, dict[str, dict]]:
    """{category, and "total": {system: {"score", "low", "high" (of 100, 95% interval), "n_ok", "n_total"}}}.

    score, low and high are None where no prompt has a score.
    """
    return {
        category: {system: _cell(column) for system, column in part.items()}
        for category, part in _by_category(items, scores).items()
    }


def ranks(items: Sequence[Item], scores: Columns) -> dict[str, list[list[str]]]:
    """{category, and "total": groups of systems from best to worst that cannot be told apart within}."""
    return {category: stats.groups(part) for category, part in _by_category(items, scores).items()}


def _by_category(items: Sequence[Item], scores: Columns) -> dict[str, Columns]:
    """{category: its prompts' part of the columns}, and "total": all of them where there is more than one category."""
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(item.category, []).append(place)
    parts = {c: {system: [column[p] for p in own] for system, column in scores.items()} for c, own in places.items()}
    return parts | ({TOTAL: scores} if len(parts) > 1 else {})


def _cell(column: Sequence[float | None]) -> dict:
    known = [score for score in column if score is not None]
    counts = {"n_ok": len(known), "n_total": len(column)}
    interval = stats.mean_interval(known)
    if interval is None:
        return {"score": None, "low": None, "high": None} | counts
    mean, low, high = (round(min(100.0, max(0.0, number * 10)), 2) for number in interval)
    return {"score": mean, "low": low, "high": high} | counts


def position(verdicts: Verdicts) -> dict:
    """What the place does to the score, where each system stood in each place.

    {"means": by place, "gap": the largest between two, "flagged": whether it is beyond chance and GAP, "moved": each
    answer whose scores differ by MOVED or more}, over the prompts with all their calls.
    """
    whole = {prompt: calls for prompt, calls in _by_prompt(verdicts).items() if all(calls)}
    if not whole:
        return {"means": [], "gap": None, "flagged": False, "moved": []}
    prompts = [[fmean(place) for place in zip(*(call.values() for call in calls))] for calls in whole.values()]
    places = list(zip(*prompts, strict=True))
    means = [fmean(place) for place in places]
    best, worst = places[means.index(max(means))], places[means.index(min(means))]
    gap, error = max(means) - min(means), 0.05 / max(1, comb(len(means), 2))
    return {
        "means": [round(mean, 3) for mean in means],
        "gap": round(gap, 3),
        "flagged": gap >= GAP and stats.differ(best, worst, error),
        "moved": [moved for prompt, calls in whole.items() for moved in _moved(*prompt, calls)],
    }


def _moved(category: str, number: int, calls: Sequence[dict[str, float]]) -> Iterable[dict]:
    for system in calls[0]:
        given = [call[system] for call in calls]
        if max(given) - min(given) >= MOVED:
            yield {"category": category, "number": number, "system": system, "low": min(given), "high": max(given)}


def characters(items: Sequence[Item]) -> dict[str, float]:
    """Mean characters an answer of each system."""
    return {system: round(fmean(len(item.answers[system]) for item in items), 1) for system in items[0].answers}


def length(items: Sequence[Item], scores: Columns) -> dict[str, float | None]:
    """Rank correlation of an answer's length with its score: {system: over its prompts}, and "within_prompts": over all
    answers, length and score each less their mean of the prompt, which leaves out that some prompts are harder."""
    lengths = {system: [len(item.answers[system]) for item in items] for system in scores}
    within: tuple[list[float], list[float]] = ([], [])
    for row in zip(zip(*lengths.values(), strict=True), zip(*scores.values(), strict=True), strict=True):
        for centred, known in zip(within, stats.both_known(*row), strict=True):
            centred += [value - fmean(known) for value in known]
    pairs = {system: stats.both_known(lengths[system], scores[system]) for system in scores}
    return {name: _rounded(stats.rank_correlation(*pair)) for name, pair in {**pairs, "within_prompts": within}.items()}


def agreement(judges: Mapping[str, Columns]) -> list[dict]:
    """For each two judges (people among them): rank correlation and weighted kappa over the answers both scored."""
    found = []
    for one, other in combinations(judges, 2):
        sides = [[score for system in judges[one] for score in judges[judge][system]] for judge in (one, other)]
        known = stats.both_known(*sides)
        found.append({
            "between": [one, other],
            "rank_correlation": _rounded(stats.rank_correlation(*known)),
            "weighted_kappa": _rounded(stats.weighted_kappa(*known)),
            "answers": len(known[0]),
        })  # fmt: skip
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def is_own_judge(judge: str, system: str) -> bool:
    """Whether a judge's model and a candidate look like the same: GPT-4 and gpt-4-0613, ChatGPT and gpt-3.5-turbo."""
    one, other = ("".join(filter(str.isalnum, name.lower())) for name in (judge, system))
    alike = min(len(one), len(other)) > 3 and (one in other or other in one)
    return alike or (other == "chatgpt" and one.startswith("gpt"))
