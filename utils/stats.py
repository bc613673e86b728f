"""How sure a mean is, and whether two systems differ: the unit is the prompt, never the call.

Under 40 prompts a Student t interval, wider on the side of a long tail; from 40 on the percentile bootstrap, which at
n = 10 would hold the mean only about 91 times in 100. Standard library only.
"""

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations, pairwise, product
from operator import sub
from statistics import correlation, fmean, stdev

BOOTSTRAP_FROM = 40
RESAMPLES = 4000
# Five differences of one sign are no proof: a two-sided sign test needs six for p < 0.05.
LEAST_PAIRS = 6


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """The value that Student's t with `freedom` degrees stays below with `probability` (0.5 or above, below 1)."""
    low, high = 0.0, 1.0
    while _t_below(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, freedom) < probability else (low, middle)
    return high


def _t_below(value: float, freedom: int) -> float:
    """P(t < value) for value >= 0: the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(value / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for step in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * step / (step + 1)
    if odd:
        return 0.5 + (angle + math.sin(angle) * total) / math.pi
    return 0.5 + math.sin(angle) * total / 2


def mean_interval(values: Sequence[float], error: float = 0.05) -> tuple[float, float, float] | None:
    """(mean, low, high) at 1 - error; None for no values; one value alone has no finite interval.

    Scores crowd below 10 with a tail down, and there plain t holds the mean of ten only 88 to 91 times in 100: its
    first skewness term (P. Hall, The Bootstrap and Edgeworth Expansion, 1992, 3.10) is added on the side of the tail.
    """
    if not values:
        return None
    mean = fmean(values)
    if len(values) == 1:
        return mean, -math.inf, math.inf
    if len(values) >= BOOTSTRAP_FROM:
        return mean, *_bootstrap(values, error)
    quantile, spread = t_quantile(1 - error / 2, len(values) - 1), stdev(values)
    half = quantile * spread / math.sqrt(len(values))
    third = fmean((value - mean) ** 3 for value in values)
    tail = (2 * quantile**2 + 1) * third / (6 * len(values) * spread**2) if spread else 0.0
    return mean, mean - half + min(0.0, tail), mean + half + max(0.0, tail)


def _bootstrap(values: Sequence[float], error: float) -> tuple[float, float]:
    """Percentile interval of the mean; the same seed always, so that a table made again is the same table."""
    chance = random.Random(0)
    means = sorted(fmean(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    outside = int(RESAMPLES * error / 2)
    return means[outside], means[-1 - outside]


def groups(columns: Mapping[str, Sequence[float | None]]) -> list[list[str]]:
    """The systems from best to worst, cut into groups only where each one above can be told from each one below.

    columns: a score a prompt (None: no score) of each system, all over the same prompts. Two systems are told apart by
    the interval of their paired differences, at 5% for all pairs of a table row together (Bonferroni).
    """
    means = {name: fmean(known) for name, values in columns.items() if (known := [v for v in values if v is not None])}
    error = 0.05 / max(1, math.comb(len(means), 2))
    order = sorted(means, key=lambda name: -means[name])
    apart = {(a, b) for a, b in combinations(order, 2) if differ(columns[a], columns[b], error)}
    cuts = [place for place in range(1, len(order)) if apart.issuperset(product(order[:place], order[place:]))]
    return [order[start:end] for start, end in pairwise([0, *cuts, len(order)]) if start < end]


def differ(first: Sequence[float | None], second: Sequence[float | None], error: float = 0.05) -> bool:
    """Whether two systems' scores on the same prompts have different means."""
    differences = list(map(sub, *both_known(first, second)))
    interval = mean_interval(differences, error)
    return interval is not None and len(differences) >= LEAST_PAIRS and not interval[1] <= 0 <= interval[2]


def both_known(first: Sequence[float | None], second: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """The two without the places where either has None."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return [a for a, _ in pairs], [b for _, b in pairs]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's: Pearson's correlation of the ranks, ties sharing theirs; None for fewer than 3 pairs or where one
    side is constant."""
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return correlation(_ranks(first), _ranks(second))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [(bisect_left(order, value) + bisect_right(order, value)) / 2 for value in values]


def weighted_kappa(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Cohen's kappa with quadratic weights, of two raters' scores of the same answers; scores need not be whole.

    1 is agreement everywhere, 0 what chance gives. None for no pairs, or where both gave one same score throughout.
    """
    if not first:
        return None
    seen = fmean((a - b) ** 2 for a, b in zip(first, second, strict=True))
    by_chance = fmean((a - b) ** 2 for a in first for b in second)
    return 1 - seen / by_chance if by_chance else None


def mean_kappa(raters: Sequence[Sequence[float]]) -> float | None:
    """The mean weighted kappa of all pairs of raters."""
    values = [value for a, b in combinations(raters, 2) if (value := weighted_kappa(a, b)) is not None]
    return fmean(values) if values else None
