"""The fast path of training: the same mathematics with less work. A reader who skips it misses nothing of the story.

    rows without padding   a micro batch is one sequence of all its rows; attention stays inside each row
    FusedLora              base and LoRA product of a layer in one step, computed in the base's dtype
    summed_loss            logits of a few learned tokens at a time, their gradient at once: never all of the vocabulary
                           (on a GPU liger-kernel's, where it is installed)
    part_tokens            a micro batch goes through the model in parts that the memory does not notice
    keep_memory            the allocator keeps what it has, instead of a page fault for each page of each step

--fast False takes the plain path, which is what the tests compare with. Effects: scripts/bench/README.md.
"""

import ctypes
import sys
from importlib.util import find_spec
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from utils.errors import ModelFault

ROWS = "attention inside rows"  # the name that transformers knows rows_attention by
PACKED = ("llama",)  # model types whose attention goes through transformers' interface; tried
SHORT = 512  # tokens of a row up to which its scores may all exist
CHUNK = 256  # learned tokens whose logits exist at the same time
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # <malloc.h>


def can_pack(model: PreTrainedModel | PeftModel) -> bool:
    """Whether rows can be laid behind one another: the model takes position ids and another attention."""
    return model.config.model_type in PACKED


def part_tokens(device: torch.device) -> int:
    """Tokens that go through the model at once. On a CPU more are not faster and only take memory; on a GPU the user
    fills it by --micro_batch_size."""
    return 1024 if device.type == "cpu" else sys.maxsize


def register(config: LoraConfig, model: PreTrainedModel) -> None:
    """Have PEFT build FusedLora on the linear layers of an unquantised model (the quantised ones have their own)."""
    if not getattr(model, "is_quantized", False):
        config._register_custom_module({nn.Linear: FusedLora})


def prepare(model: PeftModel, device: torch.device) -> nn.Linear:
    """Make a model with LoRA ready for packed rows and for summed_loss. Returns its head, which it then lacks: what it
    calls logits are the hidden states, (tokens, hidden size). Raises ModelFault for a model that changes its logits
    behind the head (scales or caps them)."""
    if device.type == "cpu":
        keep_memory()
    head = model.get_output_embeddings()
    if not _is_last(head, model):
        raise ModelFault(f"{model.config.model_type} changes its logits behind the head: add --fast False")
    if can_pack(model):
        model.get_base_model().set_attn_implementation(_attention(model, device))
    through = nn.Identity()
    through.weight = head.weight  # Mamba's forward reads its dtype
    model.set_output_embeddings(through)
    return head


def _is_last(head: nn.Module | None, model: PeftModel) -> bool:
    """Whether the model gives out what its head computes, tried on two tokens."""
    if not isinstance(head, nn.Linear):
        return False
    computed: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda module, given, output: computed.append(output))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[0, 1]], device=head.weight.device), use_cache=False).logits
    hook.remove()
    return len(computed) == 1 and logits.dtype == computed[0].dtype and torch.equal(logits, computed[0])


def _attention(model: PeftModel, device: torch.device) -> str:
    """flash-attn's kernel for rows of different lengths where it is installed, else one call a row. The kernel computes
    in 16 bits only, as a quantised model does on a GPU."""
    is_half = model.dtype.itemsize == 2 or getattr(model, "is_quantized", False)
    if device.type == "cuda" and is_half and is_flash_attn_2_available():
        return "flash_attention_2"
    AttentionInterface.register(ROWS, rows_attention)
    return ROWS


def _offers(device: torch.device, package: str) -> bool:
    """Whether this is a GPU and the package with its kernels, which only GPUs have, is installed."""
    return device.type == "cuda" and find_spec(package) is not None


def keep_memory() -> None:
    """Tell glibc's malloc to give nothing back to the system and to take large blocks from the heap too; other C
    libraries have no such switch."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


def rows_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_lengths: list[int],
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each of the rows that stand behind one another.

    query (1, heads, tokens, channels), key and value (1, key heads, tokens, channels), row_lengths: tokens a row.
    Returns ((1, tokens, heads, channels), None), as transformers' attention functions do.
    """
    by_row = zip(*(states.split(row_lengths, dim=2) for states in (query, key, value)))
    is_quick = query.device.type == "cpu" and not dropout
    outputs = [
        _short_attention(q, k, v, scaling)
        if is_quick and length <= SHORT
        else functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        for length, (q, k, v) in zip(row_lengths, by_row)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _short_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """The same of one row by two products: on a CPU quicker than the fused kernel, whose backward pass is slow."""
    tokens, shared = query.shape[2], query.shape[1] // key.shape[1]
    future = query.new_full((tokens, tokens), float("-inf")).triu_(1).repeat(shared, 1)
    heads = query.reshape(key.shape[1], shared * tokens, -1)  # the query heads of a key head, one below the other
    scores = torch.baddbmm(future, heads, key[0].transpose(1, 2), alpha=scaling)
    return (scores.softmax(-1) @ value[0]).reshape(query.shape)


class FusedLora(LoraLinear):
    """PEFT's LoRA layer with its training step in one autograd function."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x (..., in) -> (..., out)."""
        if self.disable_adapters or self.merged or not self.training or x.dtype == torch.float16:
            return super().forward(x, *args, **kwargs)  # in float16 the gradients of many tokens would become 0
        (name,) = self.active_adapters
        keep = dropout_mask(x, getattr(self.lora_dropout[name], "p", 0.0))
        base = self.base_layer
        return _LoraProduct.apply(
            x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name], *keep
        )


def dropout_mask(x: torch.Tensor, p: float) -> tuple[torch.Tensor | None, float]:
    """(which numbers of x stay, what they are multiplied by). p is rounded to 1/65536: 16 random bits a number."""
    dropped = round(p * 65536)
    if not dropped:
        return None, 1.0
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    kept = bits.view(torch.int16)[: x.numel()] >= dropped - 32768
    return kept.view(-1, x.shape[-1]), 65536 / (65536 - dropped)


class _LoraProduct(torch.autograd.Function):
    """x·Wᵀ + bias + scale · dropout(x)·Aᵀ·Bᵀ for a frozen W. x (..., in), W (out, in), A (r, in), B (out, r)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        kept: torch.Tensor | None,
        factor: float,
    ) -> torch.Tensor:
        rows, a, b = x.reshape(-1, x.shape[-1]), a.to(x.dtype), b.to(x.dtype)
        inner = (rows if kept is None else rows * kept) @ a.t()
        output = functional.linear(rows, weight, bias).addmm_(inner, b.t(), alpha=scale * factor)
        ctx.save_for_backward(rows, weight, a, b, inner, kept)
        ctx.scale, ctx.shape = scale * factor, x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, a, b, inner, kept = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        of_inner = (gradient @ b) * ctx.scale
        of_b = (gradient.t() @ inner).float() * ctx.scale
        of_a = (of_inner.t() @ (rows if kept is None else rows * kept)).float()
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = of_inner @ a
            of_x = (of_x if kept is None else of_x.mul_(kept)).addmm_(gradient, weight).view(ctx.shape)
        return of_x, None, None, of_a, of_b, None, None, None


def summed_loss(hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over tokens. hidden (tokens, size), targets (tokens,); the head is frozen."""
    if len(targets) and _offers(hidden.device, "liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        return LigerFusedLinearCrossEntropyLoss(reduction="sum")(head.weight, hidden, targets, head.bias)
    return _SummedLoss.apply(hidden, head.weight, head.bias, targets)


class _SummedLoss(torch.autograd.Function):
    """CHUNK tokens at a time; where a gradient is wanted it is worked out while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK):
            part, wanted = slice(start, start + CHUNK), targets[start : start + CHUNK, None]
            logits = functional.linear(hidden[part], weight, bias).float()
            most, learned = logits.amax(-1, keepdim=True), logits.gather(1, wanted)
            probabilities = logits.sub_(most).exp_()  # in place: of BLOOM's vocabulary a part is 257 MB
            sums = probabilities.sum(-1, keepdim=True)
            total += (sums.log() + most - learned).sum()
            if gradient is not None:
                probabilities.div_(sums).scatter_add_(1, wanted, probabilities.new_full(wanted.shape, -1.0))
                gradient[part] = probabilities.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * factor.to(gradient.dtype), None, None, None
