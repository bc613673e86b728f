"""The frozen base cut into as many pieces as there are processes (FSDP2): each holds one, and has a layer whole only
while that layer computes. The adapter stays whole in every process, and so do its gradients, optimizer and files.

accelerate's own FSDP would cut the adapter too, and does nothing on a CPU; so its configuration is read here instead.
"""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from utils import ranks

STORAGE = torch.bfloat16  # of packed 4-bit weights: pieces of it can be put together again, pieces of uint8 cannot


def shard(model, device: torch.device) -> None:
    """Cut the decoder layers under an adapter into pieces, where a launcher asks for it, the adapter left whole. The
    wrapper that averages the adapter's gradients leaves the pieces alone."""
    if not ranks.shards_base():
        return
    mesh = init_device_mesh(device.type, (ranks.world_size(),))
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad}
    base = model.get_base_model()
    for layer in [layer for layer in base.modules() if type(layer).__name__ in base._no_split_modules]:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    pieces = [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, pieces)
