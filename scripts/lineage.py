"""Where an adapter comes from: the stages behind it, what they have forgotten of each other, and whether all that it
was made of is still what it was.

    python scripts/lineage.py show output/rerun-2-alpaca-13b-3 --png forgetting.png

    python scripts/lineage.py verify output/rerun-2-alpaca-13b-3

OUT is a stage's output folder, one of its checkpoints, or merged weights.
"""

import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import cli, files, record
from utils.errors import ArgumentFault, Fault, ModelFault
from utils.prompter import Prompter


def show(
    *out: str,  # one folder
    png: str = "",
) -> None:
    """Draw the chain behind OUT: base, stages, data, rows, template, steps, losses, dates; then what was forgotten.

    png: draw what was forgotten as a heatmap into this file, too.
    """
    if png and (Path(png).is_dir() or not Path(png).resolve().parent.is_dir()):
        raise ArgumentFault(f"--png: {png} is no file in an existing folder")
    chain = chain_of(out)
    print(*bases(chain), "", *table(described(chain)), sep="\n")
    trained = [stage for stage in chain if stage["run"]["kind"] != "merge"]
    losses = triangle(trained)
    print("\nValidation loss on each stage's held-out rows (nats per answer token), + its rise since that stage:\n")
    print(*table(forgotten(trained, losses)), *unmeasured(trained), sep="\n")
    if png:
        from utils import plots

        plots.forgetting([stage["name"] for stage in trained], losses, png)
        print(f"\nThe heatmap: {png}")


def verify(*out: str) -> None:
    """Hold all that OUT was made of against the hashes in run.json: bases, templates, parents, data, adapters.

    Data sets of the Hub are not asked for again: they are listed as not seen.
    Exits with 4, naming each one that is gone or no longer what it was, with both hashes.
    """
    found = facts(chain_of(out))
    changed = []
    for kind, name, then in found:
        on_hub = kind == "data" and not Path(name).is_absolute()
        now = then if on_hub else hash_now(kind, name)
        state = "not seen" if on_hub else "as it was" if now == then else "CHANGED"
        print(f"{state:<9}  {kind:<8}  {then[:12]}  {name}", flush=True)
        if now != then:
            changed.append(f"{kind} {name}: {then[:12]} -> {now[:12]}")
    if changed:
        raise ModelFault(f"{len(changed)} of {len(found)} are no longer what they were: {'; '.join(changed)}")


def chain_of(out: tuple[str, ...]) -> list[dict]:
    """The stages up to the folder OUT, the first one first, as record.lineage gives them."""
    if len(out) != 1:
        raise ArgumentFault("one folder is needed: python scripts/lineage.py show OUT")
    chain = record.lineage({"path": str(Path(out[0]).resolve())})
    if not chain:
        raise ModelFault(f"{out[0]} has no {record.NAME}: nothing tells where it comes from")
    return chain


# --- Whether it is still what it was ---


def facts(chain: list[dict]) -> list[tuple[str, str, str]]:
    """(kind, path or template name, hash as recorded) of all that the stages were made of and left, each once."""
    found = []
    for stage in chain:
        run = stage["run"]
        found.append(("base", run["base"]["path"], run["base"]["fingerprint"]))
        if run.get("template"):
            found.append(("template", run["template"]["name"], run["template"]["sha256"]))
        for start in run.get("adapters") or [run.get("parent")]:  # a merge may hold several
            found += of_adapter(start) if start else []
        found += [("data", item["path"], item["sha256"]) for item in run.get("data") or []]
        found += [("adapter", f"{stage['folder']}/{name}", sha256) for name, sha256 in (run.get("files") or {}).items()]
    return list(dict.fromkeys(found))


def of_adapter(start: dict) -> Iterator[tuple[str, str, str]]:
    """The weights that a stage or a merge started from, and the record of the run that made them."""
    folder = Path(start["path"])
    # The choice of weights.adapter_file, without its seconds of importing torch.
    pickled = (folder / "adapter_model.bin").exists() and not (folder / "adapter_model.safetensors").exists()
    yield "adapter", str(folder / f"adapter_model.{'bin' if pickled else 'safetensors'}"), start["sha256"]
    if start.get("run_sha256"):
        yield "run.json", str(record.home(folder) / record.NAME), start["run_sha256"]


def hash_now(kind: str, name: str) -> str:
    """What stands in the place of a recorded hash today; "gone" where there is nothing."""
    try:
        if kind == "base":
            return record.describe_base(name, Path(name))["fingerprint"]
        return Prompter(name).sha256 if kind == "template" else files.sha256_file(Path(name))
    except (Fault, FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return "gone"


# --- How it is drawn ---


def bases(chain: list[dict]) -> Iterator[str]:
    """A line for the base, for each other base from a later stage on, and for a beginning that is not known."""
    before = None
    for number, stage in enumerate(chain, 1):
        base = stage["run"]["base"]
        if base["fingerprint"] != before:
            merge = record.read(Path(base["path"])) or {}
            halves = [adapter["path"] for adapter in merge.get("adapters") or []]
            made = f" = {' + '.join([merge['base']['name'], *halves])}" if halves else ""
            since = f" from stage {number} on" if before else ""
            yield f"base{since}: {base['name']}{made}"
        before = base["fingerprint"]
    if parent := chain[0]["run"].get("parent"):
        yield f"stage 1 goes on from {parent['path']}, of which no {record.NAME} tells"


def described(chain: list[dict]) -> list[list[str]]:
    """A line a stage, under a line of titles."""
    lines = [["", "stage", "data", "rows", "held out", "template", "steps", "loss", "validation loss", "finished, UTC"]]
    for number, stage in enumerate(chain, 1):
        run = stage["run"]
        rows, losses = run.get("rows") or {}, run.get("losses") or {}
        lines.append([
            str(number),
            stage["name"],
            data_of(run),
            *(str(rows[part]["rows"]) if part in rows else "" for part in ("training", "validation")),
            (run.get("template") or {}).get("name", ""),
            str(run.get("steps", "")),
            f"{losses['train']:.3f}" if losses else "",
            f"{losses['start']:.3f} -> {losses['best']:.3f}" if "best" in losses else "",
            run["finished"][:16].replace("T", " ") if "finished" in run else run["status"],
        ])  # fmt: skip
    return lines


def data_of(run: dict) -> str:
    """Names of a stage's data files, and the share of earlier rows replayed; a merge's adapters."""
    if run["kind"] == "merge":
        return "merge of " + " + ".join(Path(adapter["path"]).name for adapter in run["adapters"])
    names = [Path(item["path"]).stem for item in run["data"]]
    replay = run["settings"].get("replay")
    return " + ".join([*names, f"{replay:g} replayed"] if replay else names)


def triangle(chain: list[dict]) -> list[list[float | None]]:
    """After each stage: the validation losses on the held-out rows of the first stage ... of this stage.

    None where nothing was measured.
    """
    rows = []
    for number, run in enumerate(stage["run"] for stage in chain):
        earlier = [item.get("loss") for item in run.get("held_out") or []]
        # The last one is the parent's: where the first stages are gone, chain and losses are laid end to end.
        earlier = [*([None] * number), *earlier][len(earlier) :]
        rows.append([*earlier, (run.get("losses") or {}).get("best")])
    return rows


def forgotten(chain: list[dict], losses: list[list[float | None]]) -> list[list[str]]:
    """The triangle under a line of titles: the loss, and what it has risen since the column's stage ended."""
    lines = [["", "after", *(f"on {number}" for number in range(1, len(chain) + 1))]]
    for number, (stage, row) in enumerate(zip(chain, losses, strict=True), 1):
        cells = []
        for column, loss in enumerate(row):
            then = losses[column][column]
            rise = f" {loss - then:+.3f}" if column < number - 1 and loss is not None and then is not None else ""
            cells.append("-" if loss is None else f"{loss:.3f}{rise}")
        lines.append([str(number), stage["name"], *cells])
    return lines


def unmeasured(chain: list[dict]) -> Iterator[str]:
    """Why a loss is missing, a line each."""
    for stage in chain:
        for item in stage["run"].get("held_out") or []:
            if "why" in item:
                yield f"after {stage['name']}, {item['stage']} was not measured: {item['why']}"


def table(lines: list[list[str]]) -> list[str]:
    """Lines with their columns made equally wide; short lines are filled up."""
    filled = [line + [""] * (max(map(len, lines)) - len(line)) for line in lines]
    widths = [max(map(width, column)) for column in zip(*filled)]
    return ["  ".join(text + " " * (to - width(text)) for text, to in zip(line, widths)).rstrip() for line in filled]


def width(text: str) -> int:
    """Columns on a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


if __name__ == "__main__":
    cli.run({"show": show, "verify": verify})
