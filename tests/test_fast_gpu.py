"""Which kernels the fast path takes on a GPU: the choice is tested, no GPU is needed."""

import sys
from types import SimpleNamespace

import torch
from torch import nn

from utils import fast

CPU = torch.device("cpu")


def test_a_gpu_with_flash_attn_uses_its_kernel_where_that_can_compute(monkeypatch):
    gpu = torch.device("cuda")
    whole, half = (SimpleNamespace(dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    quantised = SimpleNamespace(dtype=torch.float32, is_quantized=True)  # its norms; under autocast in 16 bits
    monkeypatch.setattr(fast, "is_flash_attn_2_available", lambda: True)
    assert fast._attention(half, gpu) == fast._attention(quantised, gpu) == "flash_attention_2"
    assert fast._attention(half, CPU) == fast._attention(whole, gpu) == fast.ROWS
    monkeypatch.setattr(fast, "is_flash_attn_2_available", lambda: False)
    assert fast._attention(half, gpu) == fast.ROWS


def test_a_gpu_with_liger_kernel_uses_its_loss(monkeypatch):
    """In the place of the package and of the GPU: what is given to it, and that the CPU does without."""
    given = []

    class Loss:
        def __init__(self, **settings):
            given.append(settings)

        def __call__(self, weight, hidden, targets, bias):
            given.append((weight, hidden.shape, targets, bias))
            return "theirs"

    liger = SimpleNamespace(LigerFusedLinearCrossEntropyLoss=Loss)
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", liger)
    monkeypatch.setattr(fast, "find_spec", lambda name: object())
    head, targets = nn.Linear(4, 9), torch.tensor([3, 5])
    on_gpu = SimpleNamespace(device=torch.device("cuda"), shape=(2, 4))
    assert fast.summed_loss(on_gpu, head, targets) == "theirs"
    assert given == [{"reduction": "sum"}, (head.weight, (2, 4), targets, head.bias)]
    assert fast.summed_loss(torch.ones(2, 4), head.requires_grad_(False), targets).ndim == 0
