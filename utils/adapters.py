"""Adapters on disk: reading with suspicion, holding them against the model they are for, saving with proof.

PEFT itself accepts an empty file, missing or extra tensors, NaN, and another depth without a word.
"""

import inspect
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedModel

from utils import checkpoint, record
from utils.errors import ArgumentFault, ModelFault, first_line
from utils.files import disk_faults, flush_folder, sha256_file, write_json
from utils.lora import INPUT, Adapter, not_plain, refuse_merged_linear
from utils.weights import ADAPTER_FILES, Weights, adapter_file, read_config, read_weights


def describe_parent(path: str, output_dir: str) -> dict | None:
    """The starting adapter's {"path", "sha256", "run_sha256", "base", "template"} for run.json, None without one.

    A path inside output_dir is a checkpoint of the run itself: the parent that is recorded there stays the parent.
    """
    if not path:
        return None
    folder, output = Path(path), Path(output_dir)
    if folder.resolve().is_relative_to(output.resolve()):
        own = record.read(output)
        if own is not None:
            print(f"{path} is a checkpoint of this very run: going on from its newest one")
            return own.get("parent")
    home = record.home(folder)
    is_checkpoint = home != folder
    if is_checkpoint:
        print(f"{path} is a checkpoint of another run: its weights start this one, its step and optimizer do not")
    run = record.read(home) or {}
    if not is_checkpoint and run.get("status", "complete") != "complete":
        advice = "run its command again first, or give one of its checkpoint-… folders"
        raise ModelFault(f"--resume_from_checkpoint: {folder} is not complete: {advice}")
    if change := record.changed_template(run):
        raise ModelFault(f"--resume_from_checkpoint: {folder} was trained with other texts: {change}")
    return {
        "path": str(folder.resolve()),
        "sha256": sha256_file(adapter_file(folder)),
        "run_sha256": sha256_file(home / record.NAME) if run else None,
        "base": (run.get("base") or {}).get("fingerprint"),
        "template": (run.get("template") or {}).get("name"),
    }


def check_weights(weights: Weights, model: PeftModel, source: Path, name: str = "default") -> None:
    """Hold an adapter against the LoRA layers it is for (which may be on the meta device); name: theirs in the model.

    Raises ModelFault naming the first missing, unexpected, misshapen or non-finite tensor.
    """
    expected = get_peft_model_state_dict(model, adapter_name=name)
    refuse_merged_linear(source, {}, weights)
    if missing := sorted(expected.keys() - weights.keys()):
        raise ModelFault(f"{source}: {len(missing)} tensors are missing, the first is {missing[0]}")
    if extra := sorted(weights.keys() - expected.keys()):
        raise ModelFault(f"{source}: {len(extra)} tensors have no place in this model, the first is {extra[0]}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, here it must be {list(expected[name].shape)}"
            raise ModelFault(f"{source}: {name} is {shapes} (another rank, or another base model)")
        if not torch.isfinite(tensor).all():
            raise ModelFault(f"{source}: {name} holds NaN or infinity")


def inherit(flags: dict, given: frozenset[str], parent: dict | None) -> dict:
    """The flags with rank, alpha, targets, rsLoRA and template taken from the parent, each announced.

    given: names of the flags that the user gave. Raises ArgumentFault for a given flag that contradicts the parent:
    an adapter's shape, scale and template cannot change between stages. Raises ModelFault for a parent whose
    configuration asks for more than LoRA of one rank and one scale: trained as such it would be another adapter.
    """
    if parent is None:
        return flags
    config = read_config(Path(parent["path"]))
    refuse_merged_linear(Path(parent["path"]), config, {})
    if others := not_plain(config):
        raise ModelFault(
            f"--resume_from_checkpoint: {parent['path']}: {', '.join(others)}: plain LoRA only is trained on"
        )
    theirs = {
        "lora_r": config.get("r"),
        "lora_alpha": int(float(config["lora_alpha"])) if "lora_alpha" in config else None,
        "lora_target_modules": tuple(sorted(config.get("target_modules") or ())) or None,
        "use_rslora": bool(config.get("use_rslora")),
        "prompt_template_name": parent["template"],
    }
    result = dict(flags)
    for name, value in theirs.items():
        ours = tuple(sorted(flags[name])) if isinstance(flags[name], tuple) else flags[name]
        if value is None or value == ours:
            continue
        if name in given:
            given_here, theirs_here = map(_as_flag, (flags[name], value))
            raise ArgumentFault(f"--{name}: {given_here} is not what {parent['path']} was trained with ({theirs_here})")
        print(f"--{name} {_as_flag(value)} inherited from {parent['path']}")
        result[name] = value
    if "lora_dropout" in given and config.get("lora_dropout") not in (None, flags["lora_dropout"]):
        print(f"--lora_dropout {flags['lora_dropout']} overrides the parent's {config['lora_dropout']}")
    return result


def _as_flag(value: object) -> str:
    return f"[{','.join(value)}]" if isinstance(value, tuple) else str(value)


def check_parent(parent: dict | None, base: dict, model: PeftModel, force_base: bool) -> None:
    """All that can be known before the base model loads: base and tensors of the starting adapter fit.

    model: the LoRA model of this run on the meta device. Raises ModelFault; with force_base another base is a warning.
    """
    if parent is None:
        return
    folder = Path(parent["path"])
    if parent["base"] not in (None, base["fingerprint"]):
        problem = f"--resume_from_checkpoint: {folder} was trained on another base model than --base_model"
        if not force_base:
            raise ModelFault(f"{problem} (--force_base if you know better)")
        record.warn(problem)
    source = adapter_file(folder)
    weights = read_weights(source)
    check_weights(weights, model, source)
    if not _has_learned(weights):
        raise ModelFault(f"{source}: every lora_B is zero, it has learned nothing")
    if change := _changed(folder):
        raise ModelFault(f"--resume_from_checkpoint: {change}")


def _changed(folder: Path) -> str | None:
    """What is no longer as the stage before (or its checkpoint) wrote it: a flipped bit is a tensor like any other."""
    if not (folder / checkpoint.MANIFEST).exists():
        return record.changed_file(folder, record.read(folder) or {})
    problem = checkpoint.checkpoint_problem(folder)
    return f"{folder}: {problem}" if problem else None


def load_parent(parent: dict | None, model: PeftModel) -> None:
    """Give the starting adapter's weights to the model (checked before, see check_parent)."""
    if parent is not None:
        set_peft_model_state_dict(model, read_weights(adapter_file(Path(parent["path"]))))


def apply_adapter(
    model: PreTrainedModel | PeftModel, folder: Path | None, name: str = "default"
) -> PreTrainedModel | PeftModel:
    """The model with the adapter of `folder` on it under `name`, for answers; the model as it is for None.

    On a model on the meta device only the fit is checked. Raises ModelFault for an adapter that does not fit.
    """
    if folder is None:
        return model
    source, settings = adapter_file(folder), read_config(folder)
    refuse_merged_linear(folder, settings, {})
    config = _lora_config({**settings, "inference_mode": True})
    try:
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name)
    except ValueError as error:
        raise ModelFault(f"{folder}: the adapter does not fit this base model: {first_line(error)}") from None
    weights = read_weights(source)
    check_weights(weights, model, source, name)
    if model.device.type != "meta":
        set_peft_model_state_dict(model, weights, adapter_name=name)
    return model


def apply_adapters(model: PreTrainedModel | PeftModel, folders: Mapping[str, Path]) -> PreTrainedModel | PeftModel:
    """The model with several adapters on it to switch between, each under its name (see apply_adapter).

    A single one becomes part of the weights, which is faster; a quantised base keeps it beside them.
    """
    for name, folder in folders.items():
        model = apply_adapter(model, folder, name)
    if len(folders) == 1 and not getattr(model.get_base_model(), "is_quantized", False) and model.device.type != "meta":
        return model.merge_and_unload()
    return model


def unmerged(model: PreTrainedModel, adapters: list[Adapter]) -> PreTrainedModel | PeftModel:
    """The base with adapters on it, in order, the last one's LoRA layers unmerged: what a merge is compared with.

    Embeddings grow to the adapters' sizes; tied ones stay tied. Raises ModelFault where PEFT has no place for a tensor.
    """
    for adapter in adapters:
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        inputs = model.get_input_embeddings().weight
        rows = max([len(inputs), *(len(new) for name, new in adapter.whole.items() if name.endswith(INPUT))])
        if rows > len(inputs):
            model.resize_token_embeddings(rows, mean_resizing=False)
        for name, tensor in adapter.whole.items():
            model.get_parameter(name).data.copy_(tensor)
        if adapter.lora:
            config = {**adapter.config, "modules_to_save": None}
            model = get_peft_model(model, _lora_config(config))
            result = set_peft_model_state_dict(model, adapter.lora)
            if lost := [*result.unexpected_keys, *(name for name in result.missing_keys if "lora_" in name)]:
                raise ModelFault(f"{adapter.folder}: PEFT does not find the place of {lost[0]}")
    return model


def _lora_config(config: dict) -> LoraConfig:
    """Old files carry keys that PEFT no longer knows, or null. The base is held against ours by its content: PEFT would
    warn of every other spelling of its path."""
    known = inspect.signature(LoraConfig).parameters.keys() - {"base_model_name_or_path"}
    return LoraConfig(**{key: value for key, value in config.items() if key in known and value is not None})


def lora_weights(model: PeftModel) -> Weights:
    """A copy of the adapter's tensors on the CPU, under the names they have on disk."""
    return {name: tensor.detach().cpu().clone() for name, tensor in get_peft_model_state_dict(model).items()}


def set_lora_weights(model: PeftModel, weights: Weights, source: Path) -> None:
    """Give the model these tensors after holding them against it. Raises ModelFault."""
    check_weights(weights, model, source)
    set_peft_model_state_dict(model, weights)


def bytes_of(model: PeftModel) -> int:
    """Bytes of the adapter's float32 tensors."""
    return sum(4 * tensor.numel() for tensor in get_peft_model_state_dict(model).values())


def write_adapter(model: PeftModel, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors; the same model gives the same bytes."""
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    config = read_config(folder)
    write_json(folder / "adapter_config.json", {**config, "target_modules": sorted(config["target_modules"])})
    (folder / ADAPTER_FILES[0]).chmod(0o644)


def save_adapter(model: PeftModel, output_dir: str) -> dict[str, str]:
    """Write the adapter into output_dir, reopen it, prove it whole, then rename it into place, weights last.

    Returns {file name: sha256}. Raises ModelFault when what was written is not what the model holds, or nothing was
    learned (every lora_B zero); EnvironmentFault when the disk is full.
    """
    output = Path(output_dir)
    staging = Path(tempfile.mkdtemp(dir=output, prefix=".staging-"))
    try:
        with disk_faults(output):
            write_adapter(model, staging)
            _prove(staging / ADAPTER_FILES[0], model)
            flush_folder(staging)
            hashes = {name: sha256_file(staging / name) for name in ("adapter_config.json", ADAPTER_FILES[0])}
            for name in hashes:
                os.replace(staging / name, output / name)
            flush_folder(output, files=False)
        return hashes
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _prove(path: Path, model: PeftModel) -> None:
    weights = read_weights(path)
    check_weights(weights, model, path)
    held = get_peft_model_state_dict(model)
    if changed := [name for name, tensor in weights.items() if not torch.equal(tensor, held[name].cpu())]:
        raise ModelFault(f"{path}: {changed[0]} was not written as it is")
    if not _has_learned(weights):
        raise ModelFault(f"{path.parent.parent}: every lora_B is zero, nothing was learned")
    if unmoved := [name for name, tensor in weights.items() if "lora_B" in name and not tensor.any()]:
        record.warn(f"{len(unmoved)} layers have learned nothing, the model passes them by: {unmoved[0]} is zero")


def _has_learned(weights: Weights) -> bool:
    return any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
