"""run.json: what made this output. Identity decides whether a command continues a run or would start another.

Keys: kind ("finetune" | "merge"), status ("running" | "complete"), folder, base, parent, template, versions. Of a
training run also processes, data, settings, started, rows, micro_batch_sizes; at the end finished, steps, losses,
tokens, speed, files, held_out. Of a merge (utils.merged): adapters, merged, dtype, finished. Written beside the
weights, read by later stages, generate.py and merge_lora.py. Paths are absolute; "folder" is where the output lay, so
that what lay beside it is found after a move.
"""

import json
import os
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from utils import ranks
from utils.errors import ModelFault
from utils.files import sampled_hash, sha256_file, write_json
from utils.prompter import Prompter, template_problem

NAME = "run.json"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers", "safetensors")

# What a tokenizer is made of besides tokenizer*.
TOKENIZER_FILES = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")

# Settings that change the mathematics of a run; all others (logging, folders, micro batch) may differ.
MATHEMATICAL = (
    "batch_size", "num_epochs", "learning_rate", "cutoff_len", "val_set_size", "lora_r", "lora_alpha", "lora_dropout",
    "lora_target_modules", "train_on_inputs", "group_by_length", "load_8bit", "load_4bit", "dtype", "seed", "replay",
    "data_mix", "last_turn_only", "fast", "use_rslora", "neftune_noise_alpha",
)  # fmt: skip
# What runs were made with before these flags were there.
BEFORE = {"use_rslora": False, "neftune_noise_alpha": 0.0}


def describe_base(name: str, folder: Path) -> dict:
    """{"name", "path", "fingerprint"} of a base model: its configuration, tokenizer and weights, sampled by content.

    Raises ModelFault for a folder without config.json or weights.
    """
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if not weights or not (folder / "config.json").exists():
        raise ModelFault(f"{folder}: no model here (config.json and *.safetensors or pytorch_model*.bin)")
    small = [path for path in (folder / "config.json", *sorted(folder.glob("tokenizer*"))) if path.is_file()]
    small += [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return {"name": name, "path": str(folder.resolve()), "fingerprint": sampled_hash([*small, *weights])}


def describe(kind: str, settings: dict, base: dict, parent: dict | None, data: list[dict], prompter: Prompter) -> dict:
    """The record of a run that starts now, as written to run.json."""
    return {
        "kind": kind,
        "status": "running",
        "folder": str(Path(settings["output_dir"]).resolve()),
        "base": base,
        "parent": parent,
        "processes": ranks.world_size(),
        "data": data,
        "template": {"name": prompter.name, "sha256": prompter.sha256},
        "settings": {  # JSON has no infinity, which here is the default: no limit
            key: list(value) if isinstance(value, tuple) else value
            for key, value in settings.items()
            if value != float("inf")
        },
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES},
        "started": now(),
    }


def begin(output_dir: str, run: dict, rows: dict) -> None:
    """Write the record of a run that starts, or goes on (then with its first start's time).

    A changed micro batch is announced and recorded: the same rows make a step, but float sums round otherwise. Other
    versions of the libraries are announced.
    """
    folder = Path(output_dir)
    before = read(folder) or run
    micro = run["settings"]["micro_batch_size"]
    used = before.get("micro_batch_sizes", [before["settings"]["micro_batch_size"]])
    if used[-1] != micro:
        warn(f"--micro_batch_size {used[-1]} -> {micro}: the run goes on, but its bytes will differ")
        used = [*used, micro]
    libraries = before.get("versions") or {}
    other = [
        f"{name} {libraries.get(name)} -> {now}" for name, now in run["versions"].items() if libraries.get(name) != now
    ]
    if other and libraries:
        warn(f"{', '.join(other)}: the run goes on, but its bytes may differ")
    run |= {"rows": rows, "started": before["started"], "micro_batch_sizes": used}
    write_json(folder / NAME, run)


def finish(output_dir: str, run: dict, outcome: dict) -> None:
    """Mark the run complete, with its outcome (losses, tokens, speed)."""
    write_json(Path(output_dir) / NAME, {**run, **outcome, "status": "complete", "finished": now()})


def changed_file(folder: Path, run: dict) -> str | None:
    """The first of the files that a finished run left ("files": name -> sha256) that is no longer what it was."""
    for name, sha256 in (run.get("files") or {}).items():
        path = Path(folder) / name
        if not path.is_file():
            return f"{path} is gone"
        if sha256_file(path) != sha256:
            return f"{path} is not what was written ({path.stat().st_size} bytes)"
    return None


def refuse_changed_data(run: dict) -> None:
    """Raises ModelFault when a data file was changed while the run went on: its record would name another content."""
    for item in run["data"]:
        path = Path(item["path"])
        if path.is_file() and (now := sha256_file(path)) != item["sha256"]:
            raise ModelFault(f"{path} was changed during the run: {short(item['sha256'])} -> {short(now)}")


def home(folder: Path) -> Path:
    """The folder of the run that wrote this one: that of a checkpoint (there still or not) is the one it lies in."""
    path = folder.resolve()
    is_checkpoint = path.name.startswith("checkpoint-") or (path / "trainer_state.json").exists()
    return path.parent if is_checkpoint and not (path / NAME).exists() else folder


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(folder: Path | str) -> dict | None:
    """The record in `folder`, None where there is none. Raises ModelFault for one that cannot be read."""
    path = Path(folder) / NAME
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (ValueError, OSError) as error:
        raise ModelFault(f"{path} cannot be read: {error}") from None
    return value


def lineage(parent: dict | None) -> list[dict]:
    """The stages behind a run, the first one first, each {"name", "folder", "run"}, as far as run.json tells.

    parent: a run's "parent". A checkpoint stands for the run that wrote it. The paths in "run" are those of today,
    where base, data and stages were moved together.
    """
    stages: list[dict] = []
    while parent is not None:
        folder = home(Path(parent["path"]))
        run = read(folder)
        if run is None or any(stage["folder"] == str(folder) for stage in stages):
            break
        run = _where_it_lies(run, folder)
        stages.insert(0, {"name": folder.name, "folder": str(folder), "run": run})
        parent = run.get("parent")
    return stages


def _where_it_lies(run: dict, folder: Path) -> dict:
    """The record of the run in `folder`, each path that is gone replaced by what lies there as that lay beside it."""

    def today(item: dict | None) -> dict | None:
        path = Path((item or {}).get("path") or "")
        if "folder" not in run or not path.is_absolute() or path.exists():
            return item
        moved = Path(os.path.normpath(folder.resolve() / os.path.relpath(path, run["folder"])))
        return {**(item or {}), "path": str(moved)} if moved.exists() else item

    found = {key: today(run.get(key)) for key in ("base", "parent") if key in run}
    return run | found | {key: list(map(today, run[key])) for key in ("data", "adapters") if key in run}


def changed_template(run: dict) -> str | None:
    """How the template's texts differ from those that a run was trained with, None where they do not (or where none
    are recorded). Raises ArgumentFault for a template that is gone."""
    then = run.get("template") or {}
    now = Prompter(then["name"]).sha256 if then.get("sha256") else None
    return None if now == then.get("sha256") else f"template {then['name']}: {short(then['sha256'])} -> {short(now)}"


def template_of(folder: Path, asked: str) -> str:
    """The template to prompt with: the one asked for, else the one in the folder's run.json, else alpaca.

    One warning line where they disagree, or where nothing is recorded.
    """
    run = read(home(folder)) or {}
    recorded = (run.get("template") or {}).get("name")
    if not recorded and not asked:
        what = "names no template in its run.json" if run else "has no run.json"
        unknown = "" if run.get("base") else ", its base cannot be checked"
        warn(f"{folder} {what}: the template alpaca is assumed (--prompt_template){unknown}")
    elif recorded and asked not in ("", recorded):
        warn(f"--prompt_template {asked}: {folder} was trained with {recorded}")
    elif recorded and template_problem(recorded) is None and (change := changed_template(run)):
        warn(f"{folder} was trained with other texts: {change}")
    return asked or recorded or "alpaca"


def check_base(adapter: Path | None, base: dict) -> None:
    """Warn when the adapter's run.json names another base than this one."""
    trained_on = ((read(home(adapter)) or {}).get("base") if adapter else None) or base
    if trained_on["fingerprint"] != base["fingerprint"]:
        warn(f"{adapter} was trained on {trained_on['name']}, whose files differ from those of {base['name']}")


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr)


def differences(old: dict, new: dict) -> list[str]:
    """What would make `new` another run than `old`, as "name: old -> new"."""
    pairs = [
        ("base model", _get(old, "base", "fingerprint"), _get(new, "base", "fingerprint")),
        ("starting adapter", _get(old, "parent", "sha256"), _get(new, "parent", "sha256")),
        ("data", [item.get("sha256") for item in old.get("data") or []], [item["sha256"] for item in new["data"]]),
        ("template", _get(old, "template", "sha256"), _get(new, "template", "sha256")),
        ("processes", old.get("processes", 1), new["processes"]),
    ]
    settings = BEFORE | (old.get("settings") or {})
    pairs += [(f"--{key}", settings.get(key), new["settings"][key]) for key in MATHEMATICAL]
    return [f"{name}: {short(before)} -> {short(after)}" for name, before, after in pairs if before != after]


def refuse_unlike(runs: list[dict]) -> None:
    """Raises ModelFault where the processes of a launcher, `runs` by rank, would not do the same work: machines may
    hold other files under the same names, or have been given other flags."""
    for rank, run in enumerate(runs):
        changes = differences(runs[0], run)
        for name in ("micro_batch_size", "dry_run"):
            ours, theirs = runs[0]["settings"].get(name), run["settings"].get(name)
            changes += [f"--{name}: {ours} -> {theirs}"] if ours != theirs else []
        if changes:
            raise ModelFault(f"rank {rank} has something else before it than rank 0 ({'; '.join(changes)})")


def _get(run: dict, part: str, key: str) -> object:
    return (run.get(part) or {}).get(key)


def short(value: object) -> str:
    """A value as one shows it beside another: of a hash its first 12 digits."""
    if isinstance(value, dict):
        return " ".join(map(short, value.values()))
    if isinstance(value, list):
        return "[" + ",".join(map(short, value)) + "]"
    if value == "":
        return '""'
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
