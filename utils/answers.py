"""test.json and the journal beside it: which prompts are answered already, by what, and whether to go on.

The journal's first line says what is asked of what (prompts, base, adapter, template, settings); each line after it
holds the answers of one batch. test.json is written from it, whole, when every prompt has its answer. Together they
say at any time, after any kill: complete, to be gone on with, or about something else.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import checkpoint, journal, record
from utils.errors import DataFault, EnvironmentFault, ModelFault
from utils.files import PART, disk_faults, json_text, move_aside, sha256_file, write_atomic
from utils.hub import adapter_names
from utils.rows import Row
from utils.tuned import Tuned
from utils.weights import adapter_file, read_config

SUFFIX = ".journal"
# What changes an answer; where and how many at once does not.
SETTINGS = (
    "num_beams", "temperature", "top_p", "top_k", "max_new_tokens", "seed", "stop", "load_8bit", "load_4bit", "dtype",
)  # fmt: skip
KEPT = {"output", "finish_reason", "tokens", "seconds"}  # of an answer
Answers = dict[int, dict]


def output_file(output_path: str, adapter: str, base: str) -> Path:
    """Where the answers go: output_path, else test.json in the adapter's folder, else (a Hub adapter, or none) in
    ./answers-<name>. Those of a checkpoint go beside it: it is believed only while it holds nothing else, and removed
    when newer ones come. Its folder is made. Raises EnvironmentFault where nothing can be written."""
    if output_path:
        path = Path(output_path)
    elif adapter and (Path(adapter) / checkpoint.MANIFEST).exists():
        folder = Path(adapter).resolve()
        path = folder.with_name(f"test-{folder.name}.json")
    elif os.path.isdir(adapter):
        path = Path(adapter) / "test.json"
    else:
        name = adapter or base
        name = Path(name).resolve().name if os.path.isdir(name) else name.replace("/", "--")
        path = Path(f"answers-{name}") / "test.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"{path.parent} cannot be made: {error.strerror}") from None
    return path


def describe(flags: Mapping[str, Any], base: Mapping, tuned: Tuned, prompts: Sequence[Row]) -> dict:
    """What is asked of what: the first line of a journal. Two runs with the same one have the same answers."""
    return {
        "prompts": {"count": len(prompts), "sha256": _hash(prompts)},
        "base model": base["fingerprint"],
        "adapter": _adapter(tuned.folder) if tuned.folder else "",
        "template": {"name": tuned.prompter.name, "sha256": tuned.prompter.sha256},
        "settings": {name: flags[name] for name in SETTINGS},
    }


def _adapter(folder: Path) -> dict[str, str]:
    """What an adapter answers with: its weights, and (in its configuration) the scale that they are added at."""
    return {"weights": sha256_file(adapter_file(folder)), "configuration": _hash(read_config(folder))}


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode("utf-8")).hexdigest()


def begin(flags: Mapping[str, Any], base: Mapping, tuned: Tuned, prompts: Sequence[Row]) -> "Target":
    """The file that the flags of generate.py ask for. Raises what Target raises."""
    (adapter,) = adapter_names(flags["lora_weights"]) or [""]
    path = output_file(flags["output_path"], adapter, flags["base_model"])
    return Target(path, describe(flags, base, tuned, prompts), prompts, flags["overwrite"])


class Target:
    """One test.json with its journal, taken for this process. done: {index of one of `prompts`: its answer}. A copy
    that goes to another process of the run knows what is done and writes nothing.

    Raises ModelFault, naming each difference, where test.json or the journal are about something else (with overwrite
    they are moved away); EnvironmentFault where another process is at it, or nothing can be written.
    """

    def __init__(self, path: Path, asked: dict, prompts: Sequence[Row], overwrite: bool):
        self.path, self.prompts, self._asked = path, prompts, asked
        where = path.with_name(path.name + SUFFIX)
        if overwrite:
            _move_aside(path, where)
        elif path.exists() and not where.exists():
            raise ModelFault(f"{path} is there, and nothing tells what made it; --overwrite moves it away")
        self._journal = journal.Journal(where)
        for left in path.parent.glob(f"{PART}{path.name}.*"):  # of a run that was killed while it wrote
            left.unlink()
        before, self.done = _read(where)
        self._is_new = before is None  # its first line is written with the first answers
        if before and (changes := _differences(before, asked)):
            self._journal.close()
            raise ModelFault(f"{path} holds other answers ({'; '.join(changes)}); --overwrite moves them away")
        if path.exists() and (not self.is_complete or path.read_bytes() != self._text().encode()):
            self._journal.close()
            raise ModelFault(f"{path} is not what was written; --overwrite moves it away")
        if self.done and not self.is_complete:
            print(f"{path} goes on: {len(self.done)} of {len(prompts)} prompts are answered")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_journal": None}

    @property
    def is_complete(self) -> bool:
        """Whether every prompt has its answer."""
        return len(self.done) == len(self.prompts)

    def add(self, answers: Answers) -> None:
        """Put the answers of one batch on the disk. Raises EnvironmentFault where that is full."""
        if self._journal is not None:
            with disk_faults(self.path.parent):
                if self._is_new:
                    self._journal.append(self._asked)
                    self._is_new = False
                self._journal.append({"answers": {str(index): answer for index, answer in answers.items()}})
        self.done |= answers

    def close(self) -> None:
        """Write test.json, if it is not there: each prompt's row with its answer, in the prompts' order."""
        if self._journal is None:
            return
        if self.path.exists():
            print(f"{self.path} is already complete: {len(self.done)} answers")
        else:
            with disk_faults(self.path.parent):
                write_atomic(self.path, self._text())
            print(f"{len(self.done)} answers in {self.path}")
        self._journal.close()

    def _text(self) -> str:
        return json_text([{**row, **self.done[index]} for index, row in enumerate(self.prompts)])


def _read(path: Path) -> tuple[dict | None, Answers]:
    """(what was asked, answers) of a journal. Raises DataFault naming a line that is not of ours."""
    asked: dict = {}
    done: Answers = {}
    for number, raw in enumerate(journal.whole_lines(path), 1):
        try:
            line = json.loads(raw)
            if number == 1:
                asked = {key: line[key] for key in ("prompts", "base model", "adapter", "template", "settings")}
            else:
                found = {int(index): dict(answer) for index, answer in line["answers"].items()}
                count = asked["prompts"]["count"]
                if not all(0 <= index < count and answer.keys() >= KEPT for index, answer in found.items()):
                    raise ValueError
                done |= found
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DataFault(f"{path}:{number}: no line of a journal of answers; --overwrite moves it away") from None
    return asked or None, done


def _differences(old: dict, new: dict) -> list[str]:
    flat = [{**{f"--{key}": value for key, value in line["settings"].items()}, **line} for line in (old, new)]
    names = [name for name in {**flat[0], **flat[1]} if name != "settings"]
    return [
        f"{name}: {record.short(flat[0].get(name))} -> {record.short(flat[1].get(name))}"
        for name in names
        if flat[0].get(name) != flat[1].get(name)
    ]


def _move_aside(path: Path, where: Path) -> None:
    """Give test.json and its journal other names, if nobody is writing them."""
    if where.exists():
        journal.Journal(where).close()
    for old in (path, where):
        if old.exists():
            move_aside(old)
