"""What a run takes of its device's memory, by arithmetic, before anything is loaded.

Of a training step the larger part is what autograd keeps of the forward pass until the backward pass has used it.
For each token and layer of a LLaMA (hidden size h, intermediate size f, heads of d channels each, c bytes a number):

    norms       2 · 4h         float32, whatever the base's dtype
    LoRA        4 · in · 2     of each target: its input in float32 with the dropout, and the dropout's noise (without
                               dropout the input alone); 4r between A and B
    attention   4 · c·heads·d  queries, keys, values (repeated for every head) and the result
                c · length     the mask
    MLP         3 · c·f        gate, its activation, up
    fast path   in · (c + 1)   in place of LoRA's line: its input, shared by the targets that read it, and a mask each
                c·heads·length in place of attention's second: the scores of a row against itself
    8 bits      c · in         of every linear layer on a CPU, where bitsandbytes keeps the inputs

Of a BLOOM, whose rows are padded and whose scores all exist:

    norms       2 · c·h
    attention   3 · c·h        queries, keys, values
                heads·length·4 the scores behind the softmax, in float32; another c each where c is less
    MLP         c·f            what the gate reads

Where all of this does not fit, it is recomputed (must_recompute): every layer keeps its input (c·h), and one layer at a
time all of this. On top come the logits in front of the learned tokens: log-probabilities and two gradients, each in
float32 over the vocabulary; on the fast path those of a few tokens. There rows have no padding and go through the model
in parts.
ALLOCATOR (KEEPING) is what lies between the pieces: of memory that is freed, a part is not given back.
"""

from collections.abc import Callable, Mapping

import datasets
import numpy
import psutil
import torch
from torch import nn

from utils import fast, ranks, runtime

ALLOCATOR, KEEPING = 1.3, 1.4  # measured with glibc's allocator over steps of many lengths; as fast.keep_memory sets it


def estimate(
    model, rows: datasets.Dataset, flags: Mapping[str, object], device: torch.device, recompute: bool = False
) -> dict[str, int]:
    """Bytes that training takes at its peak: {"libraries", "weights", "adapter", "optimizer", "activations", "logits"}.

    model: the base with its LoRA layers, on the meta device; rows: the encoded training rows; flags: finetune.py's.
    recompute: with the activations of one layer at a time. "libraries" is what this process holds now.
    """
    number = _bytes_of_a_number(model, flags, device)
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    tokens, length, targets = _largest_batch(rows, model, flags, device)
    config = model.config.get_text_config()
    activations = tokens * _kept_of_a_token(model, length, number, flags, device)
    if recompute:
        layers = config.num_hidden_layers
        activations = activations / layers + tokens * number * config.hidden_size * layers
    between = KEEPING if flags["fast"] else ALLOCATOR
    logits = 3 * 4 * targets * config.vocab_size
    return {
        "libraries": psutil.Process().memory_info().rss if device.type == "cpu" else 0,
        "weights": _weights(model, number, flags),
        "adapter": 4 * learned,
        "optimizer": (4 + 8) * learned,  # gradient, Adam's two moments
        "activations": int(between * activations),
        "logits": int(between * logits),
    }


def must_recompute(model, rows: datasets.Dataset, flags: Mapping[str, object], device: torch.device) -> bool:
    """Whether the run's activations, all kept, do not fit what is free on the device, so that each layer's are to be
    computed again in the backward pass; a line with the figures then says so.

    For the parameters see estimate and free_bytes. Always False for a model that transformers cannot recompute.
    """
    free = free_bytes(device)
    kept, recomputed = (sum(estimate(model, rows, flags, device, way).values()) / 1e9 for way in (False, True))
    if kept * 1e9 <= free or not model.supports_gradient_checkpointing:
        return False
    print(
        f"activations are recomputed, which is slower: with all of them kept the run would take {kept:.2f} GB of "
        f"{free / 1e9:.2f} GB free, so it takes {recomputed:.2f} GB"
    )
    return True


def free_bytes(device: torch.device) -> int:
    """What one of the processes that train on this machine can have: its GPU's free memory; of a CPU's its share, with
    what it holds already."""
    free = runtime.free_bytes(device)
    return free if device.type == "cuda" else free // ranks.local_size() + psutil.Process().memory_info().rss


def advice(needed: Callable[[Mapping[str, object]], int], flags: Mapping[str, object], free: int) -> str:
    """The flags to change so that a run fits, the mildest change first. needed: flags -> bytes."""
    batch, micro, cutoff = flags["batch_size"], flags["micro_batch_size"], flags["cutoff_len"]
    changes = [{"micro_batch_size": size} for size in range(micro - 1, 0, -1) if batch % size == 0]
    if not flags["load_4bit"]:
        changes.append({"micro_batch_size": 1, "load_8bit": False, "load_4bit": True})
    changes += [{**changes[-1], "cutoff_len": shorter} for shorter in (cutoff // 2, cutoff // 4) if changes and shorter]
    for change in changes:
        if (bytes_ := needed({**flags, **change})) <= free:
            changed = " ".join(f"--{name} {value}" for name, value in change.items() if flags[name] != value)
            return f"{changed} would take {bytes_ / 1e9:.2f} GB"
    return "no flag makes it fit: a smaller base or a larger device"


def _bytes_of_a_number(model, flags: Mapping[str, object], device: torch.device) -> int:
    """Of the base's activations. A quantised base computes in float32, its norms and embeddings being held in it."""
    if _is_quantised(flags):
        return 4
    return runtime.compute_dtype(flags["dtype"], model.config.dtype or torch.float32, device).itemsize


def _is_quantised(flags: Mapping[str, object]) -> bool:
    return bool(flags["load_8bit"] or flags["load_4bit"])


def _weights(model, number: int, flags: Mapping[str, object]) -> int:
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    linear = sum(layer.weight.numel() for layer in _linear_layers(model))
    size, rest = (0.55 if flags["load_4bit"] else 1, 4) if _is_quantised(flags) else (number, number)
    pieces = ranks.world_size() if ranks.shards_base() else 1
    return int(size * linear / pieces) + rest * (frozen - linear)


def _linear_layers(model) -> list[nn.Linear]:
    """The base's linear layers, those that quantisation packs: all but the one that makes the logits."""
    head = model.get_output_embeddings()
    return [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and "lora_" not in name and layer is not head
    ]


def _kept_of_a_token(model, length: int, number: int, flags: Mapping[str, object], device: torch.device) -> int:
    """Bytes that autograd keeps for one token in all layers: see the tables above."""
    config = model.config.get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    wide = getattr(config, "intermediate_size", None) or 4 * hidden
    channels = heads * (getattr(config, "head_dim", None) or hidden // heads)
    is_bloom = config.model_type == "bloom"
    if is_bloom:
        layer = 5 * number * hidden + heads * length * (4 if number == 4 else 4 + number) + number * wide
    else:
        seen = heads if _is_packed(model, flags) else 1
        layer = 2 * 4 * hidden + 4 * number * channels + number * length * seen + 3 * number * wide
    kept = layer * config.num_hidden_layers
    readers = 1 if is_bloom else 2  # targets that read the same input
    is_fused = flags["fast"] and not _is_quantised(flags)
    for name, lora in model.named_modules():
        if name.endswith("lora_A.default") and is_fused:
            kept += (number / readers + bool(flags["lora_dropout"])) * lora.in_features + number * lora.out_features
        elif name.endswith("lora_A.default"):
            kept += 4 * lora.in_features * (2 if flags["lora_dropout"] else 1) + 4 * lora.out_features
    if flags["load_8bit"] and device.type == "cpu":
        kept += sum(number * layer.in_features for layer in _linear_layers(model))
    return kept


def _is_packed(model, flags: Mapping[str, object]) -> bool:
    return bool(flags["fast"]) and fast.can_pack(model)


def _largest_batch(rows: datasets.Dataset, model, flags: Mapping[str, object], device) -> tuple[int, int, int]:
    """(tokens, length of a row, tokens whose logits exist) at once: the micro batch of the longest rows, padded to the
    longest; on the fast path its largest part."""
    lengths = numpy.minimum(rows["length"][:], flags["cutoff_len"])
    learned = numpy.minimum(rows["supervised"][:], flags["cutoff_len"])
    longest = numpy.lexsort((learned, lengths))[::-1][: flags["micro_batch_size"]]
    length, targets = int(lengths[longest[0]]), int(learned[longest].sum())
    if flags["fast"]:
        targets = min(targets, fast.CHUNK)
    tokens = int(lengths[longest].sum()) if _is_packed(model, flags) else len(longest) * length
    most = max(length, fast.part_tokens(device)) if flags["fast"] else tokens
    return min(tokens, most), length, targets
