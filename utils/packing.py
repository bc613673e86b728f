"""The weights of a bfloat16 model on a CPU, laid out once as oneDNN reads them, and not again for every product.

torch does this to a model that its compiler has frozen; these are the same operators, without the compiler.
"""

import torch
from torch import nn


class PackedLinear(nn.Module):
    """A linear layer for answers: the same products of the same bfloat16 weights, without gradients."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def pack(model: nn.Module) -> nn.Module:
    """The model with its bfloat16 linear layers packed, where it lies on a CPU that multiplies bfloat16."""
    if model.device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return model
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear and layer.weight.dtype == torch.bfloat16:
                setattr(parent, name, PackedLinear(layer))
    return model
