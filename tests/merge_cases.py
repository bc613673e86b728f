"""A base and an adapter small enough to be written by hand, for the tests of merging."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from utils import lora, merge, planning
from utils.files import new_folder

W = "model.layers.0.self_attn.q_proj.weight"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NAME = lora.PREFIX + W.removesuffix(".weight")
CONFIG = {"r": 2, "lora_alpha": 8}


def small_base(folder: Path) -> Path:
    """One layer of (3, 4), embeddings of 5 rows, a tokenizer of 5 entries."""
    folder.mkdir()
    torch.manual_seed(0)
    save_file({W: torch.randn(3, 4), EMBED: torch.randn(5, 4), HEAD: torch.randn(5, 4)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"vocab_size": 5}')
    (folder / "tokenizer.json").write_text(tokenizer(5))
    return folder


def tokenizer(entries: int) -> str:
    """The text of a tokenizer.json of so many entries."""
    return json.dumps({"model": {"vocab": {f"piece {number}": number for number in range(entries)}}})


def tensors(**more) -> dict[str, torch.Tensor]:
    """An adapter of rank 2 on W, as PEFT names it."""
    a, b = torch.arange(8.0).reshape(2, 4), torch.arange(6.0).reshape(3, 2)
    return {f"{NAME}.lora_A.weight": a, f"{NAME}.lora_B.weight": b, **more}


def adapter(base: Path, held=None, config=CONFIG, folder="adapter") -> lora.Adapter:
    """These tensors (or the usual ones) as the adapter of a folder beside the base."""
    return lora.Adapter(base.parent / folder, config, tensors() if held is None else held)


def run(base: Path, *adapters: lora.Adapter, output="out", dtype="auto") -> dict:
    """Merge into a folder beside the base; the report."""
    plan = planning.plan(base, list(adapters), dtype)
    with new_folder(base.parent / output, plan.bytes) as staging:
        return merge.write(plan, staging)


def merged(base: Path, *adapters: lora.Adapter, output="out", dtype="auto") -> dict[str, torch.Tensor]:
    """The tensors of a merge."""
    run(base, *adapters, output=output, dtype=dtype)
    files = (base.parent / output).glob("*.safetensors")
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


def save_adapter(folder: Path, held=None, config=CONFIG, run=None) -> Path:
    folder.mkdir()
    save_file(held or tensors(), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if run is not None:
        (folder / "run.json").write_text(json.dumps(run))
    return folder


def merge_flags(folder: Path) -> dict:
    """A merge by hand-made numbers; no model that could run, so --verify False."""
    base, adapter = small_base(folder / "base"), save_adapter(folder / "adapter")
    return {"base_model": str(base), "lora_model": str(adapter), "output_dir": str(folder / "out"), "verify": False}
