"""Shared fixtures: a tiny base of each family, and one stage trained on it by its script (once a test session)."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

if sys.argv[0] == "-c":  # a worker of pytest-xdist; the scripts' messages begin with their name
    sys.argv[0] = "pytest.py"

# Tiny tensors gain nothing from two threads, and lose much when another process wants a core.
os.environ["OMP_NUM_THREADS"] = "1"

# A suite started in the background or under nohup ignores these, and so would the commands that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

import pytest  # noqa: E402
import tiny_models  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from shells import NAMES, PIPELINES, Tree  # noqa: E402

import finetune  # noqa: E402
import finetune_bloom  # noqa: E402
from utils import cli, models  # noqa: E402

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALL_LINEAR = {"llama": LINEAR, "bloom": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")}
TRAIN = {"llama": finetune.train, "bloom": finetune_bloom.train}
# Tests marked so run for each family; without the mark, for LLaMA.
both_families = pytest.mark.parametrize("family", list(TRAIN), indirect=True)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Path:
    """Tables of rows and tokens go into pytest's folder, for the processes that tests start too."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["DREAMERGPT_CACHE"] = str(folder)
    return folder


def write_rows(path: Path, rows: list) -> str:
    """Rows as a JSON array; returns the path as text, as a flag takes it."""
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable], object]:
    """once(name, build): what build(folder) returned the first time; a fixture of two families is made twice, not at
    every change between them."""
    made = {}

    def once(name: str, build: Callable) -> object:
        if name not in made:
            made[name] = build(tmp_path_factory.mktemp(name))
        return made[name]

    return once


@pytest.fixture(scope="session")
def family(request) -> str:
    """The model family of a test: see both_families."""
    return getattr(request, "param", "llama")


@pytest.fixture(scope="session")
def train(family) -> Callable[..., None]:
    """The family's training script."""
    return TRAIN[family]


@pytest.fixture(scope="session")
def base(family, once) -> Path:
    """A tiny model in float32 that knows a little."""
    return once(f"{family}-model", lambda folder: tiny_models.schooled(folder / "base", family))


@pytest.fixture(scope="session")
def stage(base, family, train, once) -> dict:
    """The flags of a run that learned tiny_models.ROWS by heart; its adapter lies in flags["output_dir"]."""

    def learned(folder: Path) -> dict:
        flags = {
            "base_model": str(base),
            "data_path": write_rows(folder / "rows.json", tiny_models.ROWS),
            "output_dir": str(folder / "adapter"),
            "batch_size": 8,
            "micro_batch_size": 4,
            "num_epochs": 100,
            "learning_rate": {"llama": 5e-3, "bloom": 1e-2}[family],
            "val_set_size": 0,
            "lora_r": 16,
            "lora_dropout": 0.0,
            "lora_target_modules": ALL_LINEAR[family],
            "train_on_inputs": False,
            "prompt_template_name": "alpaca_short",
            "load_8bit": False,
        }
        train(**flags)
        return flags

    return once(f"{family}-stage", learned)


@pytest.fixture(scope="session")
def silent(stage, tmp_path_factory) -> Path:
    """An adapter of the stage's shape on its base that changes nothing."""
    folder = tmp_path_factory.mktemp("adapters") / "silent"
    shutil.copytree(stage["output_dir"], folder, ignore=shutil.ignore_patterns("checkpoint-*"))
    weights = load_file(folder / "adapter_model.safetensors")
    zero = {name: torch.zeros_like(tensor) if "lora_B" in name else tensor for name, tensor in weights.items()}
    save_file(zero, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def quick(base, tmp_path) -> dict:
    """The flags of a run of three steps with an evaluation, for tests of what lies around the training."""
    return {
        "base_model": str(base),
        "data_path": write_rows(tmp_path / "rows.json", tiny_models.ROWS),
        "output_dir": str(tmp_path / "out"),
        "batch_size": 2,
        "micro_batch_size": 1,
        "num_epochs": 1,
        "val_set_size": 2,
        "lora_r": 4,
        "load_8bit": False,
        "learning_rate": 1e-2,
        "train_on_inputs": False,
    }


@pytest.fixture
def tree(tmp_path) -> Tree:
    root = tmp_path / "repository"
    root.mkdir()
    return Tree(root, tmp_path)


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> dict[str, list[str]]:
    """The call of every script but the pipelines, where everything is there: folder, script, --flag, value, ..."""
    folder = tmp_path_factory.mktemp("calls")
    (folder / "repository").mkdir()
    tree = Tree(folder / "repository", folder).complete()
    found = {}
    for name in [name for name in NAMES if name not in PIPELINES]:
        done = tree.run(name)
        assert (done.returncode, done.stderr) == (0, "")
        (found[name],) = tree.called()
        assert found[name][0] == str(tree.root)
        tree.forget()
    return found


@pytest.fixture
def nothing_starts(tmp_path, monkeypatch):
    """Every test stands in a folder with a model, an adapter, data and prompts that look usable; no weights load."""
    for folder in ("base", "adapter", "lora"):
        (tmp_path / folder).mkdir()
    for file in ("rows.json", "prompts.json", "plain.txt"):
        (tmp_path / file).write_text("[]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_given", frozenset())
    monkeypatch.setattr(models, "load_base", lambda *_: pytest.fail("the base model was loaded"))
