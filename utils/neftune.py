"""NEFTune (Jain et al. 2023, arXiv 2310.05914): noise on the embeddings in training, the weaker the longer the row.

transformers has such a hook; it takes the length of the whole tensor, which in rows without padding is that of all rows
of a part together, and in padded ones that of the longest.
"""

import torch


def add_noise(model, alpha: float) -> None:
    """From now on, in training mode, every number of an embedding gets noise of its own, uniform in
    ± alpha / sqrt(tokens of its row without padding * channels). An alpha of 0 changes nothing.

    model: called with attention_mask or row_lengths (see utils.batching) by name. The noise is drawn from torch's
    generator of the device, which a checkpoint holds.
    """
    if not alpha:
        return
    lengths = []

    def remember(module, given, named):
        if "row_lengths" in named:
            tokens = torch.tensor(named["row_lengths"])
            lengths[:] = [tokens.repeat_interleave(tokens)[None]]
        else:
            lengths[:] = [named["attention_mask"].sum(1, keepdim=True)]

    def disturb(embedding, given, embedded):
        if not embedding.training:
            return embedded
        most = alpha / (lengths[0].to(embedded.device)[..., None] * embedded.shape[-1]).sqrt()
        noise = torch.rand(embedded.shape, device=embedded.device) * 2 - 1
        return embedded + (noise * most).to(embedded.dtype)

    model.register_forward_pre_hook(remember, with_kwargs=True)
    model.get_input_embeddings().register_forward_hook(disturb)
