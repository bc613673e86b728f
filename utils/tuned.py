"""What answers: a base model, and the adapters on it with their templates and where they come from."""

from dataclasses import dataclass
from pathlib import Path

from utils import hub, record
from utils.hub import adapter_names
from utils.prompter import Prompter


@dataclass(frozen=True)
class Tuned:
    """One way to answer: the base with one adapter, or (folder None) alone.

    key: its name inside the model; name: as people are told of it; about: its lineage, in one line.
    """

    key: str
    name: str
    folder: Path | None
    prompter: Prompter
    about: str


def read_base(base_model: str) -> dict:
    """The base's {"name", "path" (a Path), "fingerprint"}. Raises ArgumentFault, EnvironmentFault or ModelFault."""
    base = record.describe_base(base_model, hub.local_folder(base_model, "base_model"))
    return {**base, "path": Path(base["path"])}


def read_tuned(lora_weights: str, prompt_template: str, base: dict) -> list[Tuned]:
    """Every adapter of `A,B` (the base alone for ""), with its template and lineage.

    Warns of an adapter that was trained on another base. Raises ArgumentFault or EnvironmentFault for one that is not
    there.
    """
    names = adapter_names(lora_weights)
    folders = [hub.local_folder(name, "lora_weights") for name in names]
    found: list[Tuned] = []
    for number, folder in enumerate(folders or [None]):
        record.check_base(folder, base)
        prompter = Prompter(record.template_of(folder or base["path"], prompt_template))
        name = _name(folder or base["path"], {tuned.name for tuned in found})
        found.append(Tuned(f"adapter{number}", name, folder, prompter, _about(folder, base, prompter)))
    return found


def folders(tuned: list[Tuned]) -> dict[str, Path]:
    """{key: folder} of those that are adapters."""
    return {one.key: one.folder for one in tuned if one.folder is not None}


def _name(folder: Path, taken: set[str]) -> str:
    """The folder's name; with its parent's in front where another has the same."""
    path = folder.resolve()
    return path.name if path.name not in taken else f"{path.parent.name}/{path.name}"


def _about(folder: Path | None, base: dict, prompter: Prompter) -> str:
    stages = record.lineage({"path": str(folder)}) if folder else []
    chain = " → ".join([base["path"].name, *(stage["name"] for stage in stages)])
    if folder and not stages:
        return f"{chain} → {folder.name} (no run.json) · template {prompter.name}"
    if not stages:
        return f"{chain} · template {prompter.name}"
    run = stages[-1]["run"]
    data = ", ".join(Path(item["path"]).name for item in run.get("data") or [])
    rows = ((run.get("rows") or {}).get("training") or {}).get("rows")
    best = (run.get("losses") or {}).get("best")
    loss = f" · validation loss {best:.3f}" if isinstance(best, float) else ""
    counted = f", {rows} rows" if rows else ""
    return f"{chain} (stage {len(stages)}: {data}{counted}{loss}) · template {prompter.name}"
