"""run.json of merged weights: which adapters are inside, and that none of their work is inside twice."""

import sys
from importlib.metadata import version
from pathlib import Path

from utils import record
from utils.errors import ModelFault


def describe(base: dict, adapters: list[tuple[Path, str]], dtype: str, output_dir: str) -> dict:
    """The record of merged weights: base, adapters (folder, SHA-256 of its weights) in order, and the template of the
    last one that has any. "merged": the hashes of all adapters inside, the base's own included; "parent": the last."""
    described = [_describe_adapter(folder, sha256) for folder, sha256 in adapters]
    templates = [(record.read(record.home(folder)) or {}).get("template") for folder, _ in reversed(adapters)]
    return {
        "kind": "merge",
        "status": "complete",
        "folder": str(Path(output_dir).resolve()),
        "base": base,
        "parent": described[-1],
        "adapters": described,
        "merged": [*_merged_before(base), *(sha256 for _, sha256 in adapters)],
        "dtype": dtype,
        "template": next(filter(None, templates), None),
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in ("torch", "safetensors")},
        "finished": record.now(),
    }


def _describe_adapter(folder: Path, sha256: str) -> dict:
    base = _base_of(record.read(record.home(folder)) or {})
    starts = [stage["run"].get("parent") for stage in record.lineage({"path": str(folder)})]
    continues = [start["sha256"] for start in starts if start]
    return {"path": str(folder.resolve()), "sha256": sha256, "base": base, "continues": continues}


def _merged_before(base: dict) -> list[str]:
    """Hashes of the adapters that are inside a base which is itself a merge."""
    run = record.read(Path(base["path"])) or {}
    return run.get("merged", [(run.get("parent") or {}).get("sha256")]) if run.get("kind") == "merge" else []


def check(run: dict, force_base: bool) -> None:
    """Raises ModelFault for an adapter that is not what its run wrote, for one that would be inside twice, itself or
    as the start of one that continues it. A first one trained on another base: the same, or a warning with force_base.
    """
    inside = _merged_before(run["base"])
    for adapter in run["adapters"]:
        if problem := record.changed_file(Path(adapter["path"]), record.read(Path(adapter["path"])) or {}):
            raise ModelFault(f"--lora_model: {problem}")
        if adapter["sha256"] in inside:
            raise ModelFault(
                f"--lora_model: {adapter['path']} is merged already, into --base_model or before in the list"
            )
        if set(adapter["continues"]) & set(inside):
            raise ModelFault(
                f"--lora_model: {adapter['path']} continues an adapter that is merged already: it holds that "
                "one's work too (merge it alone, into the base it was trained on)"
            )
        inside = [*inside, adapter["sha256"]]
    first = run["adapters"][0]
    if first["base"] not in (None, run["base"]["fingerprint"]):
        problem = f"--lora_model: {first['path']} was trained on another base model than --base_model"
        if not force_base:
            raise ModelFault(f"{problem} (--force_base if you know better)")
        record.warn(problem)


def is_same(output_dir: str, run: dict) -> bool:
    """Whether output_dir already holds what `run` describes."""
    old = record.read(Path(output_dir)) or {}
    same_base = _base_of(old) == run["base"]["fingerprint"]
    return old.get("kind") == "merge" and same_base and all(old.get(key) == run[key] for key in ("merged", "dtype"))


def _base_of(run: dict) -> str | None:
    return (run.get("base") or {}).get("fingerprint")
