"""W + scale * B @ A, tensor by tensor: a base and its adapters into plain weights that transformers loads as they are.

Whether they fit is known from names and shapes, before a byte is written. Then each tensor is mapped from the disk,
changed block by block, written, read back and hashed. Source of the arithmetic: LoRA (Hu et al. 2021), scale =
alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023); in float32, in PEFT's order of operations.
"""

import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from utils import proof, vocabulary, weights
from utils.errors import ModelFault
from utils.files import write_json
from utils.lora import INPUT, OUTPUT, Adapter, Change, blocks
from utils.weights import Weights

REPORT = "merge_report.json"
TIED = ("bloom", "gpt2", "opt")  # tied where config.json does not say
CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # their linear weights are (in, out)
# Families whose layers are all alike: where config.json has their number, and what stands outside them.
DEPTHS = {"llama": ("num_hidden_layers",), "bloom": ("n_layer", "num_hidden_layers")}
ENDS = {
    "llama": ("embed_tokens.weight", "norm.weight"),
    "bloom": ("word_embeddings.weight", "word_embeddings_layernorm.weight", "ln_f.weight"),
}


@dataclass
class Plan:
    """A merge that fits. layout: the merged weights, empty; rows: of the embeddings (None: none known by name)."""

    base: Path
    config: dict
    layout: Weights
    changes: dict[str, Change]
    tied: bool
    base_rows: int | None
    rows: int | None
    tokenizer: Path | None

    @property
    def bytes(self) -> int:
        """Disk space of the merged weights."""
        return sum(tensor.nbytes for tensor in self.layout.values())

    @property
    def weights(self) -> int:
        """How many numbers they are."""
        return sum(tensor.numel() for tensor in self.layout.values())

    @property
    def dtype(self) -> torch.dtype:
        """That of the changed weights (where they differ: the coarsest one's)."""
        kinds = {tensor.dtype for name, tensor in self.layout.items() if name in self.changes}
        return max(kinds, key=lambda kind: torch.finfo(kind).eps)


def plan(base: Path, adapters: list[Adapter], dtype: str) -> Plan:
    """Hold the adapters, in order, and their tokenizers against the base.

    dtype: "auto" keeps each weight's own, or a name such as "float16". Raises ModelFault for a quantised base, a
    missing weight, shapes or vocabularies that do not fit.
    """
    config = weights.read_object(base / "config.json")
    if config.get("quantization_config") or (base / "quantize_config.json").exists():
        raise ModelFault(f"{base} is quantised: merging would round the result, take the full-precision base")
    layout = weights.layout(base)
    tied = _is_tied(config, layout)
    _check_layers(base, config, layout, tied)
    base_rows = _rows(layout)
    if tied and any(_embeddings([*adapter.deltas, *adapter.whole]) for adapter in adapters):
        layout = {name: tensor for name, tensor in layout.items() if not name.endswith(OUTPUT)}
    changes: dict[str, Change] = {}
    for adapter in adapters:
        if tied:
            _check_tied(adapter)
        _fit(adapter, config, layout, changes, tied)
    rows = _rows(layout)
    if others := [name for name, tensor in layout.items() if tensor.dtype not in weights.DTYPES]:
        raise ModelFault(f"{base}: {others[0]} is {layout[others[0]].dtype}, a quantised weight cannot be merged into")
    for name, tensor in layout.items():
        kept = dtype == "auto" or not tensor.is_floating_point()
        layout[name] = tensor if kept else tensor.to(getattr(torch, dtype))
    folders = [adapter.folder for adapter in adapters]
    tokenizer = vocabulary.choose_tokenizer(base, folders, rows, base_rows)
    return Plan(base, config, layout, changes, tied, base_rows, rows, tokenizer)


def _embeddings(names: list[str] | Weights) -> list[str]:
    return [name for name in names if name.endswith((*INPUT, *OUTPUT))]


def _is_tied(config: dict, layout: Weights) -> bool:
    head = any(name.endswith(OUTPUT) for name in layout)
    usual = config.get("model_type") in TIED if head else config.get("model_type") != "llama"
    return bool(config.get("tie_word_embeddings", usual))


def _rows(layout: Weights) -> int | None:
    """Rows of the embeddings. Raises ModelFault where input and output would differ."""
    rows = {len(layout[name]): name for name in _embeddings(layout)}
    if len(rows) > 1:
        both = " and ".join(f"{name} {count}" for count, name in rows.items())
        raise ModelFault(f"input and output embeddings would differ in rows: {both} (the adapter grows one of them)")
    return next(iter(rows), None)


def _check_layers(base: Path, config: dict, layout: Weights, tied: bool) -> None:
    """A LLaMA or BLOOM base has every weight. (Of other families only the forward pass of --verify knows.)"""
    family = config.get("model_type")
    layers: dict[int, set[str]] = {}
    for name in layout:
        if match := re.search(r"(?:^|\.)(?:layers|h)\.(\d+)\.(.+)", name):
            layers.setdefault(int(match[1]), set()).add(match[2])
    depth = next((config[key] for key in DEPTHS.get(family, ()) if key in config), 0)
    wanted = set().union(*layers.values())
    missing = [f"layer {n}'s {name}" for n in range(depth) for name in sorted(wanted - layers.get(n, set()))]
    ends = (*ENDS.get(family, ()), *(("lm_head.weight",) if family == "llama" and not tied else ()))
    missing += [end for end in ends if not any(f".{name}".endswith(f".{end}") for name in layout)]
    if missing:
        raise ModelFault(f"{base}: {len(missing)} weights are missing in the base model, the first is {missing[0]}")


def _check_tied(adapter: Adapter) -> None:
    """One matrix serves as input and output embedding: an adapter must mean the same for both."""
    if touched := _embeddings(list(adapter.deltas)):
        raise ModelFault(f"{adapter.folder}: LoRA on {touched[0]} alone cannot be merged, the base ties its embeddings")
    heads = [name for name in adapter.whole if name.endswith(OUTPUT)]
    inputs = [name for name in adapter.whole if name.endswith(INPUT)]
    if heads and not (inputs and torch.equal(adapter.whole[heads[0]], adapter.whole[inputs[0]])):
        other = f"differs from {inputs[0]}" if inputs else "comes without the input embedding"
        raise ModelFault(f"{adapter.folder}: {heads[0]} {other}, the base ties the two")


def _fit(adapter: Adapter, config: dict, layout: Weights, changes: dict[str, Change], tied: bool) -> None:
    """Enter the adapter's changes; grown embeddings change `layout`. Raises ModelFault."""
    places = {name: _place(name, layout) for name in (*adapter.whole, *adapter.deltas)}
    missing = [name for name, place in places.items() if place is None and not (tied and name.endswith(OUTPUT))]
    if missing:
        count = f"{len(missing)} weights of the adapter are not in the base model, the first is {missing[0]}"
        raise ModelFault(f"{adapter.folder}: {count} (an adapter for another model, or of another depth)")
    if left_out := adapter.left_out({place for place in places.values() if place}, layout):
        count = f"{len(left_out)} of the layers it is for are in the base and not in it, the first is {left_out[0]}"
        raise ModelFault(f"{adapter.folder}: {count} (a cut adapter, or one for a smaller model)")
    for name, tensor in adapter.whole.items():
        if place := places[name]:
            _check_shape(adapter.folder, name, tensor, layout[place])
            changes[place] = Change(tensor)
            layout[place] = torch.empty(tensor.shape, dtype=layout[place].dtype, device="meta")
    family = config.get("model_type")
    for name, delta in adapter.deltas.items():
        place, is_conv1d = places[name], family in CONV1D or (family is None and adapter.fan_in_fan_out)
        if is_conv1d and not name.endswith(OUTPUT):
            delta = delta.transposed()
        if delta.shape != tuple(layout[place].shape) or not layout[place].is_floating_point():
            theirs = f"{list(layout[place].shape)} ({layout[place].dtype})".replace("torch.", "")
            raise ModelFault(f"{adapter.folder}: {name} is {list(delta.shape)} here and {theirs} in the base model")
        changes.setdefault(place, Change()).deltas.append(delta)


def _place(name: str, layout: Weights) -> str | None:
    """The base's name of a weight: a checkpoint of a bare model (BLOOM's) leaves out the first part."""
    return next((place for place in (name, name.partition(".")[2]) if place in layout), None)


def _check_shape(folder: Path, name: str, new: torch.Tensor, old: torch.Tensor) -> None:
    """Only embeddings grow, and nothing shrinks."""
    grows = name.endswith((*INPUT, *OUTPUT)) and new.shape[1:] == old.shape[1:] and len(new) > len(old)
    if new.shape != old.shape and not grows:
        order = " (adapters in the wrong order?)" if new.shape[1:] == old.shape[1:] else ""
        raise ModelFault(f"{folder}: {name} is {list(new.shape)} here and {list(old.shape)} in the base model{order}")


def merged(weight: torch.Tensor, change: Change | None, empty: torch.Tensor, scratch: weights.Scratch) -> torch.Tensor:
    """The merged weight, of the shape and dtype of `empty`: the mapped one itself, or one computed into `scratch`.

    The sum is formed in float32 and rounded once, however many adapters there are.
    """
    start = weight if change is None or change.whole is None else change.whole
    deltas = change.deltas if change else []
    if not deltas and start.dtype == empty.dtype:
        return start
    result = scratch.like(empty)
    if not start.ndim:
        return result.copy_(start)
    factors = [(delta.b, delta.a.float(), delta.scale) for delta in deltas]
    for rows in blocks(start):
        block = start[rows].to(torch.promote_types(start.dtype, torch.float32), copy=True)
        for b, a, scale in factors:
            block += (b[rows].float() @ a).mul_(scale)
        result[rows] = block
    return result


@torch.inference_mode()
def write(plan: Plan, target: Path) -> dict:
    """Write the merged model into `target` (an empty folder) and prove each tensor while the next one is computed.

    Returns the report: "tensors" {"changed", "unchanged"}: {name: SHA-256 of its bytes on the disk}, "vocabulary",
    "seconds" and "peak_anonymous_bytes". Raises ModelFault when what lies on the disk is not what it must be.
    """
    writer, scratch = weights.ShardWriter(target, plan.layout), weights.Scratch()
    proofs: dict[str, dict] = {}
    seconds = dict.fromkeys(("arithmetic", "writing", "waiting_for_the_proof"), 0.0)
    peak, pending = 0, None
    with one_processor_less(), ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        read = weights.read_base(plan.base)
        for name, weight in tqdm(read, "merging", len(plan.layout), unit="tensor", disable=None):
            if name not in plan.layout:  # a second copy of tied embeddings
                continue
            marks = [time.perf_counter()]
            change = plan.changes.get(name)
            result = merged(weight, change, plan.layout[name], scratch)
            marks.append(time.perf_counter())
            place = writer.write(name, result)
            peak = max(peak, _anonymous_bytes())
            marks.append(time.perf_counter())
            if pending:
                proofs[pending[0]] = pending[1].result()
            pending = name, pool.submit(proof.prove, name, weight, change, result, place)
            marks.append(time.perf_counter())
            for key, before, after in zip(seconds, marks, marks[1:]):
                seconds[key] += after - before
        proofs[pending[0]] = pending[1].result()
    writer.close()
    _copy_small_files(plan, target)
    _check_files(plan, target)
    return _report(plan, proofs, seconds, peak)


@contextmanager
def one_processor_less() -> Iterator[None]:
    """Leave a processor to the proof: threads that wait for each other's would take twice the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _anonymous_bytes() -> int:
    """Memory of this process that no file backs (RssAnon); 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def _check_files(plan: Plan, target: Path) -> None:
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.layout(target).items()}
    if found != {name: (tensor.shape, tensor.dtype) for name, tensor in plan.layout.items()}:
        raise ModelFault(f"{target}: the shards do not hold the tensors that were written")


def _report(plan: Plan, proofs: dict[str, dict], seconds: dict[str, float], peak: int) -> dict:
    if not any(proof["changed"] for proof in proofs.values()):
        raise ModelFault("the merge changes nothing: every lora_B is zero, or all changes vanish in the base's dtype")
    hashes = {
        kind: {name: proof["sha256"] for name, proof in proofs.items() if proof["changed"] == (kind == "changed")}
        for kind in ("changed", "unchanged")
    }
    rows = {name: proof["rows"] for name, proof in proofs.items() if "rows" in proof}
    entries = vocabulary.tokenizer_size(plan.tokenizer) if plan.tokenizer else None
    sizes = {"rows": plan.rows, "base_rows": plan.base_rows, "tokenizer_entries": entries}
    return {
        "tensors": {"counts": {kind: len(names) for kind, names in hashes.items()}, **hashes},
        "vocabulary": {**sizes, "tied": plan.tied, "embeddings": rows},
        "seconds": {key: round(value, 3) for key, value in seconds.items()},
        "peak_anonymous_bytes": peak,
    }


def _copy_small_files(plan: Plan, target: Path) -> None:
    """Configuration with the merged vocabulary's size and dtype, generation settings, the tokenizer that belongs."""
    config = dict(plan.config)
    if plan.rows is not None:
        config["vocab_size"] = plan.rows
    config |= {key: str(plan.dtype).removeprefix("torch.") for key in ("dtype", "torch_dtype") if key in config}
    if plan.tied:
        config["tie_word_embeddings"] = True
    write_json(target / "config.json", _right_ids(config, plan.config))
    generation = plan.base / "generation_config.json"
    if generation.is_file():
        write_json(target / generation.name, _right_ids(weights.read_object(generation), plan.config))
    for path in vocabulary.tokenizer_files(plan.tokenizer) if plan.tokenizer else ():
        shutil.copy(path, target)


def _right_ids(settings: dict, config: dict) -> dict:
    """LLaMA conversions of early 2023 say BOS 0, EOS 1, padding -1, where their tokenizer has 1, 2 and none."""
    if config.get("model_type") != "llama" or (config.get("bos_token_id"), config.get("eos_token_id")) != (0, 1):
        return settings
    return {**settings, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


def summary(report: dict) -> str:
    """The report in a line."""
    counts, rows, forward = report["tensors"]["counts"], report["vocabulary"], report["forward"]
    parts = [f"{counts['changed']} of {sum(counts.values())} tensors changed"]
    if rows["rows"] != rows["base_rows"]:
        parts.append(f"vocabulary {rows['base_rows']} -> {rows['rows']}")
    if forward:
        same = f"{forward['greedy_tokens_same']} of {forward['greedy_tokens']} greedy tokens"
        parts.append(f"logits differ by at most {forward['largest_difference']:.2g}, {same} the same")
    return ", ".join([*parts, f"{report['seconds']['all']:.1f} s"])
