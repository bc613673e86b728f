"""That a merge is right: tensor by tensor on the disk, and as a whole by what the model says.

The forward proof holds base + adapters (PEFT's own layers, unmerged) against the merged model: the same prompts, the
same 64 greedy tokens behind each, all logits.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from utils import encode, runtime, weights
from utils.errors import EnvironmentFault, ModelFault
from utils.lora import EMBEDDINGS, Change, blocks
from utils.prompter import Prompter

PROBES = 8
GREEDY = 64
# What rounding may do to the logits, in units of the dtype's precision: of the merged weights, of the activations
# (SmolLM2-135M merged in bfloat16: 0.5; computed in bfloat16, too: 6). Sums in another order alone make up to 1e-5.
WEIGHTS, COMPUTING, LEAST = 8, 32, 1e-4
PROMPTS = (
    "介绍一下北京的历史和文化。",
    "Write a short story about a lighthouse keeper.",
    "用 Python 写一个函数，判断一个数是不是质数。",
    "把下面的句子翻译成英文：今天的天气很好，我们去公园散步吧。",
    "我最近总是睡不着，应该怎么办？",
)


@torch.inference_mode()
def prove(
    name: str, weight: torch.Tensor, change: Change | None, result: torch.Tensor, place: tuple[Path, int]
) -> dict:
    """{"sha256", "changed"} of a tensor that was written at `place` (file, offset).

    Of an embedding that the adapters change also "rows" {"added", "changed"}. weight: the base's. Raises ModelFault
    where the disk holds something else than `result`, where a value is not finite, and where rows of a changed tensor,
    computed anew in float64, differ by more than rounding.
    """
    digest, expected = hashlib.sha256(), weights.as_bytes(result).numpy()
    for piece in weights.read_back(*place, len(expected)):
        digest.update(piece)
        if not numpy.array_equal(piece, expected[: weights.CHUNK]):
            raise ModelFault(f"{place[0]}: {name} was not written as it is")
        expected = expected[weights.CHUNK :]
    if result.is_floating_point() and not all(map(torch.isfinite, result.aminmax())):
        raise ModelFault(f"{name} would hold NaN or infinity (in the base model, or too large for {result.dtype})")
    proof: dict[str, Any] = {"sha256": digest.hexdigest(), "changed": False}
    if change is not None:
        _probe(name, weight, change, result)
        changes = _changed_rows(weight, result)
        if name.endswith(EMBEDDINGS):
            proof["rows"] = {"added": len(result) - len(weight), "changed": sum(changes)}
        proof["changed"] = any(proof["rows"].values() if "rows" in proof else changes)
    return proof


def _changed_rows(weight: torch.Tensor, result: torch.Tensor) -> Iterator[int]:
    """How many rows of the base's differ now, block by block: who needs to know only whether, may stop early."""
    for rows in blocks(weight):
        old, new = weight[rows].to(result.dtype), result[: len(weight)][rows]
        yield int((old != new).reshape(len(old), -1).any(1).sum())


def _probe(name: str, weight: torch.Tensor, change: Change, result: torch.Tensor) -> None:
    start = weight if change.whole is None else change.whole
    rows = torch.linspace(0, len(start) - 1, min(PROBES, len(start))).long()
    wanted = start[rows].double()
    size = wanted.abs()
    for delta in change.deltas:
        b, a = delta.b[rows].double(), delta.a.double()
        wanted += delta.scale * (b @ a)
        size += abs(delta.scale) * (b.abs() @ a.abs())
    kind = torch.finfo(result.dtype)
    allowed = kind.eps * wanted.abs() + 1e-6 * size + kind.tiny * kind.eps
    if ((result[rows].double() - wanted).abs() > allowed).any():
        raise ModelFault(f"{name}: the merged rows are not base + adapter (a fault of this program or of the memory)")


def prompts(tokenizer: Any) -> list[list[int]]:
    """PROMPTS as ids, in the template alpaca."""
    prompter = Prompter("alpaca")
    return [encode.prompt_ids(tokenizer, prompter, {"instruction": text}) for text in PROMPTS]


def place(weights_in_all: int, stored_bytes: int, devices: list[torch.device]) -> tuple[torch.device, str]:
    """Where one whole model fits the memory that is free, and its dtype: "float32", or "auto" (as it is stored).

    In float32 nothing but the rounding of the merged weights is left between the two; in bfloat16 every activation is
    rounded too, and a small fault would hide in that. Raises EnvironmentFault where it fits nowhere.
    """
    for dtype, needed in (("float32", 4 * weights_in_all), ("auto", stored_bytes)):
        for device in devices:
            if runtime.free_bytes(device) > 1.25 * needed:
                return device, dtype
    free = max(map(runtime.free_bytes, devices))
    raise EnvironmentFault(
        f"the forward proof needs {1.25 * stored_bytes / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free: "
        "--verify False leaves it out"
    )


@dataclass
class Trace:
    """What a model says. ids: (prompts, length), the last ones its own; logits: (prompts, length, rows), on the CPU."""

    ids: torch.Tensor
    logits: torch.Tensor
    prompt_length: int


@torch.inference_mode()
def trace(model: Any, prompts: list[list[int]]) -> Trace:
    """Greedily behind each prompt; then the logits of all of it, in one pass.

    Prompts are cut to the end of the shortest one, so that no padding comes between.
    """
    context = getattr(model.config, "max_position_embeddings", None) or 2048
    length = min(*map(len, prompts), context // 2)
    ids = torch.tensor([prompt[-length:] for prompt in prompts], device=model.device)
    past, step = None, ids
    for _ in range(min(GREEDY, context - length)):
        output = model.eval()(input_ids=step, past_key_values=past, use_cache=True)
        past, step = output.past_key_values, output.logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, step], 1)
    return Trace(ids.cpu(), _logits(model, ids), length)


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model.eval()(input_ids=ids.to(model.device), use_cache=False).logits.cpu()


@torch.inference_mode()
def compare(merged: Any, stored: torch.dtype, wanted: Trace) -> dict:
    """The merged model against what base + adapters said.

    stored: the dtype of the merged weights. Returns the largest difference of a logit; the differences' root mean
    square in units of the logits' spread, and what rounding explains of it; how many of the greedy tokens are the same.
    Raises ModelFault for a difference beyond rounding.
    """
    got, expected = _logits(merged, wanted.ids), wanted.logits
    difference = got.float() - expected.float()
    relative = float(difference.square().mean().sqrt() / expected.float().std(-1).mean())
    allowed = WEIGHTS * torch.finfo(stored).eps + max(LEAST, COMPUTING * torch.finfo(expected.dtype).eps)
    same = (got.argmax(-1) == expected.argmax(-1))[:, wanted.prompt_length - 1 : -1]
    if not relative <= allowed:  # NaN is a difference, too
        raise ModelFault(
            f"the merged model is not base + adapter: its logits differ by {relative:.2g} of their spread, rounding "
            f"explains {allowed:.2g} ({int(same.sum())} of {same.numel()} greedy tokens are the same)"
        )
    return {
        "prompts": len(wanted.ids),
        "positions": wanted.ids.numel(),
        "computed_in": str(expected.dtype).removeprefix("torch."),
        "largest_difference": float(difference.abs().max()),
        "relative_difference": relative,
        "relative_difference_allowed": allowed,
        "greedy_tokens": same.numel(),
        "greedy_tokens_same": int(same.sum()),
    }
