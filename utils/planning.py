"""What a merge will be, and whether adapters and tokenizers fit the base.

It is known from names, shapes and settings, before a byte is written.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from utils import vocabulary, weights
from utils.errors import ModelFault
from utils.lora import EMBEDDINGS, INPUT, OUTPUT, Adapter, Change
from utils.weights import Weights

TIED = ("bloom", "gpt2", "opt")  # tied where config.json does not say
CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # their linear weights are (in, out)
# Families whose layers are all alike: what stands outside them.
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
    touched = [name for adapter in adapters for name in (*adapter.deltas, *adapter.whole) if name.endswith(EMBEDDINGS)]
    if tied and touched:
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


def _is_tied(config: dict, layout: Weights) -> bool:
    head = any(name.endswith(OUTPUT) for name in layout)
    usual = config.get("model_type") in TIED if head else config.get("model_type") != "llama"
    return bool(config.get("tie_word_embeddings", usual))


def _rows(layout: Weights) -> int | None:
    """Rows of the embeddings. Raises ModelFault where input and output would differ."""
    rows = {len(tensor): name for name, tensor in layout.items() if name.endswith(EMBEDDINGS)}
    if len(rows) > 1:
        both = " and ".join(f"{name} {count}" for count, name in rows.items())
        raise ModelFault(f"input and output embeddings would differ in rows: {both} (the adapter grows one of them)")
    return next(iter(rows), None)


def _check_layers(base: Path, config: dict, layout: Weights, tied: bool) -> None:
    """Raises ModelFault where a LLaMA or BLOOM lacks a weight (of other families only the forward proof knows)."""
    family = str(config.get("model_type"))
    layers: dict[int, set[str]] = {}
    for name in layout:
        if match := re.search(r"(?:^|\.)(?:layers|h)\.(\d+)\.(.+)", name):
            layers.setdefault(int(match[1]), set()).add(match[2])
    depth = config.get("n_layer", config.get("num_hidden_layers", 0)) if family in ENDS else 0
    if not isinstance(depth, int):
        raise ModelFault(f"{base}/config.json: {depth} is no number of layers")
    wanted = set().union(*layers.values())
    missing = [f"layer {n}'s {name}" for n in range(depth) for name in sorted(wanted - layers.get(n, set()))]
    ends = (*ENDS.get(family, ()), *(("lm_head.weight",) if family == "llama" and not tied else ()))
    missing += [end for end in ends if not any(f".{name}".endswith(f".{end}") for name in layout)]
    if missing:
        raise ModelFault(f"{base}: {len(missing)} weights are missing in the base model, the first is {missing[0]}")


def _check_tied(adapter: Adapter) -> None:
    """One matrix serves as input and output embedding: an adapter must mean the same for both."""
    if touched := [name for name in adapter.deltas if name.endswith(EMBEDDINGS)]:
        raise ModelFault(f"{adapter.folder}: LoRA on {touched[0]} alone cannot be merged, the base ties its embeddings")
    heads = [name for name in adapter.whole if name.endswith(OUTPUT)]
    inputs = [name for name in adapter.whole if name.endswith(INPUT)]
    if heads and not (inputs and torch.equal(adapter.whole[heads[0]], adapter.whole[inputs[0]])):
        other = f"differs from {inputs[0]}" if inputs else "comes without the input embedding"
        raise ModelFault(f"{adapter.folder}: {heads[0]} {other}, the base ties the two")
    is_apart = inputs and inputs[0].removesuffix(".weight").endswith(adapter.saved)
    if is_apart and not heads and not adapter.config.get("ensure_weight_tying"):
        other = "an output embedding that stayed as it was (modules_to_save without ensure_weight_tying)"
        raise ModelFault(f"{adapter.folder}: {inputs[0]} was trained beside {other}, the base ties the two")


def _fit(adapter: Adapter, config: dict, layout: Weights, changes: dict[str, Change], tied: bool) -> None:
    """Enter the adapter's changes; grown embeddings change `layout`. Raises ModelFault."""
    names = (*adapter.whole, *adapter.deltas)
    # A checkpoint of a bare model (BLOOM's) leaves out the first part of a name.
    places = {name: name if name in layout else name.partition(".")[2] for name in names}
    missing = [name for name in names if places[name] not in layout and not (tied and name.endswith(OUTPUT))]
    if missing:
        count = f"{len(missing)} weights of the adapter are not in the base model, the first is {missing[0]}"
        raise ModelFault(f"{adapter.folder}: {count} (an adapter for another model, or of another depth)")
    adapter.check_targets({place for place in places.values() if place in layout}, layout)
    for name, tensor in adapter.whole.items():
        if (place := places[name]) in layout:
            _check_shape(adapter.folder, name, tensor, layout[place])
            changes[place] = Change(tensor)
            layout[place] = torch.empty(tensor.shape, dtype=layout[place].dtype, device="meta")
    family = config.get("model_type")
    for name, delta in adapter.deltas.items():
        place, is_conv1d = places[name], family in CONV1D or (family is None and adapter.config.get("fan_in_fan_out"))
        if is_conv1d and not name.endswith(OUTPUT):
            delta = delta.transposed()
        if delta.shape != tuple(layout[place].shape) or not layout[place].is_floating_point():
            theirs = f"{list(layout[place].shape)} ({layout[place].dtype})".replace("torch.", "")
            raise ModelFault(f"{adapter.folder}: {name} is {list(delta.shape)} here and {theirs} in the base model")
        changes.setdefault(place, Change()).deltas.append(delta)


def _check_shape(folder: Path, name: str, new: torch.Tensor, old: torch.Tensor) -> None:
    """Only embeddings grow, and nothing shrinks."""
    grows = name.endswith(EMBEDDINGS) and new.shape[1:] == old.shape[1:] and len(new) > len(old)
    if new.shape != old.shape and not grows:
        order = " (adapters in the wrong order?)" if new.shape[1:] == old.shape[1:] else ""
        raise ModelFault(f"{folder}: {name} is {list(new.shape)} here and {list(old.shape)} in the base model{order}")
