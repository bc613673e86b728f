"""Pictures of a run: lengths of its rows; loss of one stage or of a whole chain; what its stages have forgotten."""

import io
import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy

matplotlib.use("Agg")
from matplotlib import font_manager, pyplot

from utils.files import write_atomic

_CHINESE = re.compile(
    r"(?!.*(bold|bd|black|thin|light|medium))((noto|source).*sans.*(cjk|sc|cn)|wqy|msyh|simhei|pingfang|hiragino)", re.I
)


def _save(figure: pyplot.Figure, target: str | Path) -> None:
    """Write the picture as a PNG, whole or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    pyplot.close(figure)
    write_atomic(Path(target), picture.getvalue())


def _fonts(names: Iterable[str]) -> list[str]:
    """Font families that can draw the names: matplotlib's own has no Chinese, so one of the system's stands behind."""
    families = ["DejaVu Sans"]
    if all(map(str.isascii, names)):
        return families
    for path in sorted(font_manager.findSystemFonts()):
        if _CHINESE.match(Path(path).name):
            font_manager.fontManager.addfont(path)
            return [*families, font_manager.get_font(path).family_name]
    print("scores.png: no Chinese font is installed (fonts-noto-cjk is one), its characters are boxes")
    warnings.filterwarnings("ignore", "Glyph", UserWarning)
    return families


def loss(stages: dict[str, str | Path], target: str | Path) -> None:
    """Draw training (line) and validation loss (dots) over steps, one panel a stage, into a PNG.

    stages: title -> metrics.jsonl; loss in nats per answer token.
    """
    figure, axes = pyplot.subplots(
        1, len(stages), figsize=(max(6, 3.6 * len(stages)), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (title, path) in zip(axes[0], stages.items(), strict=True):
        metrics = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        for key, style, label in (("loss", "-", "training"), ("eval_loss", "o-", "validation")):
            points = [(line["step"], line[key]) for line in metrics if key in line]
            axis.plot(*zip(*points, strict=True), style, label=label, markersize=4) if points else None
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("loss (nats per answer token)")
    axes[0][-1].legend()
    _save(figure, target)


def lengths(tokens: list[int], cutoff_len: int, target: str | Path) -> None:
    """Draw the histogram of the rows' lengths in tokens, and where the cutoff falls, into a PNG.

    tokens: of each row before the cutoff; what is longer than four times the cutoff counts as that long.
    """
    figure, axis = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    axis.hist([min(length, 4 * cutoff_len) for length in tokens], bins=60)
    axis.axvline(cutoff_len, color="black", linestyle="--", label=f"cutoff_len {cutoff_len}")
    axis.set(xlabel="tokens", ylabel="rows")
    axis.legend()
    _save(figure, target)


def forgetting(names: list[str], losses: list[list[float | None]], target: str | Path) -> None:
    """Draw a heatmap into a PNG: a row a stage, a column the held-out rows of a stage.

    Its colour is how far their loss has risen (red) or fallen (blue) since that stage ended. names: of the stages in
    order; losses[k][j]: validation loss after stage k on the rows of stage j <= k, in nats per answer token, None where
    it was not measured.
    """
    size = len(names)
    measured = numpy.full((size, size), numpy.nan)
    for row, known in enumerate(losses):
        measured[row, : row + 1] = [numpy.nan if loss is None else loss for loss in known[: row + 1]]
    rises = measured - measured.diagonal()
    limit = max(0.05, numpy.nan_to_num(abs(rises)).max())
    side = max(5, 1.5 * size + 2)
    figure, axis = pyplot.subplots(figsize=(side + 1.5, side - 1), layout="constrained")
    image = axis.imshow(rises, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for row in range(size):
        for column in range(row + 1):
            loss, rise = measured[row, column], rises[row, column]
            text = "not\nmeasured" if numpy.isnan(loss) else f"{loss:.3f}"
            if column < row and not numpy.isnan(rise):
                text += f"\n{rise:+.3f}"
            colour = "white" if abs(rise) > 0.6 * limit else "black"
            axis.text(column, row, text, ha="center", va="center", color=colour)
    axis.set_xticks(range(size), names, rotation=30, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(size), [f"after {name}" for name in names])
    axis.set(xlabel="held-out rows of", title="validation loss (nats per answer token)")
    figure.colorbar(image, label="rise since that stage ended")
    _save(figure, target)


def scores(judges: dict[str, dict[str, dict[str, dict]]], target: str | Path) -> None:
    """Draw each judge's scores with their 95% intervals into a PNG: a panel a judge, a group of dots a category.

    judges: {judge: {category: {system: {"score", "low", "high", …}}}}, of 100, None where nothing was scored.
    """
    categories = list(dict.fromkeys(category for cells in judges.values() for category in cells))
    systems = list(dict.fromkeys(system for cells in judges.values() for row in cells.values() for system in row))
    pyplot.rcParams["font.family"] = _fonts([*judges, *categories, *systems])
    figure, axes = pyplot.subplots(
        len(judges), 1, figsize=(max(7, 1.3 * len(categories) + 2), 3.2 * len(judges) + 0.6), sharex=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for axis, (judge, cells) in zip(axes[:, 0], judges.items(), strict=True):
        for place, system in enumerate(systems):
            shift = 0.7 * ((place + 0.5) / len(systems) - 0.5)
            found = {at: cells.get(category, {}).get(system) for at, category in enumerate(categories)}
            dots = {at + shift: cell for at, cell in found.items() if cell and cell["score"] is not None}
            middle = [cell["score"] for cell in dots.values()]
            below = [cell["score"] - cell["low"] for cell in dots.values()]
            above = [cell["high"] - cell["score"] for cell in dots.values()]
            axis.errorbar(list(dots), middle, (below, above), fmt="o", ms=4, capsize=2, label=system)
        axis.set(title=judge, ylim=(-2, 102), xlim=(-0.5, len(categories) - 0.5), ylabel="score of 100")
        axis.vlines([at + 0.5 for at in range(len(categories) - 1)], -2, 102, color="0.85", lw=0.8)
        axis.grid(alpha=0.3, axis="y")
    axes[-1][0].set_xticks(range(len(categories)), categories, rotation=20, ha="right", rotation_mode="anchor")
    axes[0][0].legend(loc="lower left", bbox_to_anchor=(0, 1.1), ncols=min(5, len(systems)), frameon=False)
    _save(figure, target)
