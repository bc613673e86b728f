"""What later stages do to earlier ones: their held-out rows measured again, some of their rows mixed in again."""

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from utils import dataset, record, runtime
from utils.errors import DataFault, EnvironmentFault, ModelFault
from utils.files import sha256_file
from utils.prompter import Prompter


def _rows_of(stage: dict) -> tuple[Dataset, Dataset]:
    """(training, held-out) rows of an earlier stage, split as it split them.

    Raises DataFault when its data is gone or no longer what it was.
    """
    _check_files(stage)
    run = stage["run"]
    settings, paths = run["settings"], [origin["path"] for origin in run["data"]]
    rows, origins = dataset.load_rows(",".join(paths), settings.get("data_mix", ()), settings["seed"])
    for now, then in zip(origins, run["data"], strict=True):
        if now["sha256"] != then["sha256"]:  # of the Hub, or changed this very moment
            raise DataFault(f"{now['path']} is no longer what {stage['name']} was trained on")
    return dataset.split(rows, settings["val_set_size"], settings["seed"])


def _check_files(stage: dict) -> None:
    """Raises DataFault when a data file is gone or no longer what the stage was trained on; the Hub is not asked."""
    for origin in stage["run"]["data"]:
        path = Path(origin["path"])
        if path.is_absolute() and not path.is_file():
            raise DataFault(f"{path} is gone")
        if path.is_absolute() and sha256_file(path) != origin["sha256"]:
            raise DataFault(f"{path} is no longer what {stage['name']} was trained on")


def _why_no_loss(stage: dict) -> str:
    """Of a stage without a loss that it ended with."""
    finished = stage["run"].get("status") == "complete"
    return "it held no rows out" if finished else "it has not ended, and has no loss to compare with"


def earlier_stages(parent: dict | None, flags: dict) -> list[dict]:
    """The stages behind a run, see record.lineage. flags: finetune.py's.

    Raises DataFault where it is plain at the start that --replay or --max_forget cannot be held to: what the earlier
    stages were is not known, or they held no rows out, or their files are gone or changed. A beginning of which nothing
    was ever known is a warning.
    """
    stages = record.lineage(parent)
    done = (record.read(Path(flags["output_dir"])) or {}).get("status") == "complete" and not flags["overwrite"]
    is_limited = flags["max_forget"] < float("inf")
    asked = "--replay" if flags["replay"] else "--max_forget" if is_limited else None
    before = stages[0]["run"].get("parent") if stages else parent
    if done or parent is None:
        return stages
    if before is not None:
        unknown = f"what {before['path']} has learned is not known: no {record.NAME} there tells"
        if asked and (not stages or before.get("run_sha256")):
            raise DataFault(f"{asked}: {unknown}")
        record.warn(f"{unknown}, so it is neither replayed nor measured")
    for stage in stages if asked else ():
        try:
            if is_limited and (stage["run"].get("losses") or {}).get("best") is None:
                raise DataFault(_why_no_loss(stage))
            _check_files(stage)
        except DataFault as fault:
            raise DataFault(f"{asked}: {stage['name']}: {fault}") from None
    return stages


def replayed(rows: Dataset, stages: list[dict], share: float, seed: int) -> tuple[Dataset, list[dict]]:
    """The stage's own rows with, behind them, rows of the earlier stages' training sets, share * len(rows) of them,
    drawn with the seed; and for run.json what was drawn: [{"stage", "rows", "of", "sha256"}].

    Raises DataFault when their data is gone or changed: a replay that silently shrinks would not be the one asked for.
    """
    if not share:
        return rows, []
    tables = [_rows_of(stage)[0] for stage in stages]
    pool, own = dataset.join(*tables), len(rows)
    chosen = random.Random(seed).sample(range(len(pool)), min(len(pool), round(share * own)))
    drawn, first = [], 0
    for stage, table in zip(stages, tables):
        numbers = [number for number in chosen if first <= number < first + len(table)]
        sha256 = hashlib.sha256(json.dumps([pool[number] for number in numbers]).encode()).hexdigest()
        drawn.append({"stage": stage["name"], "rows": len(numbers), "of": len(table), "sha256": sha256})
        print(f"replay: {len(numbers)} of {len(table)} rows of {stage['name']}")
        first += len(table)
    return dataset.join(rows, dataset.choose(pool, chosen, share=share, own=own, seed=seed)), drawn


def measure(stages: list[dict], mean_loss: Callable, tokenizer: Any) -> list[dict]:
    """Loss now on every earlier stage's held-out rows: [{"stage", "loss", "then"}], "then" being the loss that stage
    ended with; {"stage", "why"} where it cannot be measured.

    mean_loss: an encoded data set and a title -> nats per answer token.
    """
    results = []
    for stage in stages:
        then, why = (stage["run"].get("losses") or {}).get("best"), None
        try:
            if then is None:
                raise DataFault(_why_no_loss(stage))
            if change := record.changed_template(stage["run"]):
                raise DataFault(f"it was trained with other texts: {change}")
            settings = stage["run"]["settings"]
            prompter = Prompter(settings["prompt_template_name"])
            rows = _rows_of(stage)[1]
            learned = settings["train_on_inputs"], settings.get("last_turn_only", False)
            encoded, _ = dataset.encode(rows, tokenizer, prompter, settings["cutoff_len"], *learned)
        except (DataFault, EnvironmentFault) as fault:
            why = str(fault)
        # A file may be gone on one machine only: either all processes measure or none does.
        if why := next(filter(None, runtime.gathered(why)), None):
            record.warn(f"what {stage['name']} has forgotten is not measured: {why}")
            results.append({"stage": stage["name"], "why": why})
        else:
            results.append({"stage": stage["name"], "loss": mean_loss(encoded, stage["name"]), "then": then})
    return results


def refuse(held_out: list[dict], limit: float) -> None:
    """Raises ModelFault naming the stages whose loss has risen by more than limit since they ended, or DataFault one
    that could not be measured although there is a limit."""
    if limit != float("inf") and (unknown := [item for item in held_out if "why" in item]):
        raise DataFault(f"--max_forget: {unknown[0]['stage']}: {unknown[0]['why']}")
    lost = [item for item in held_out if "loss" in item and item["loss"] - item["then"] > limit]
    if lost:
        rises = ", ".join(f"{item['stage']} {item['then']:.3f} -> {item['loss']:.3f}" for item in lost)
        raise ModelFault(f"forgotten more than --max_forget {limit}: {rises} (--replay mixes earlier rows in)")
