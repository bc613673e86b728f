"""A BLOOM of 100 million random parameters beside the embedding of the published ones (250,880 rows), with a tokenizer
and rows that fill the cutoff: what memory.py measures finetune_bloom.py with.

    python scripts/bench/bloom.py --output_dir /tmp/bloom
    OMP_NUM_THREADS=2 python scripts/bench/memory.py --script finetune_bloom.py --base_model /tmp/bloom/base \\
        --data_path /tmp/bloom/rows.json --micro_batches 4 --cutoffs 256

Figures: scripts/bench/README.md.
"""

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import cli

VOCABULARY = 250_880
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def main(
    output_dir: str = "",  # gets base/ and rows.json
    hidden_size: int = 768,  # 768 in 14 layers are 99 million parameters, and 193 million in the embedding
    layers: int = 14,  # of the model
    heads: int = 12,  # of its attention
    dtype: str = "float32",  # of its weights
) -> None:
    """Write output_dir/base (weights drawn at random, a byte a token) and output_dir/rows.json."""
    import torch
    from transformers import BloomConfig, BloomForCausalLM

    folder = Path(output_dir)
    config = BloomConfig(
        vocab_size=VOCABULARY, hidden_size=hidden_size, n_layer=layers, n_head=heads, pad_token_id=3, dtype=dtype
    )
    torch.manual_seed(0)
    model = BloomForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder / "base")
    _tokenizer().save_pretrained(folder / "base")
    embedding = model.get_input_embeddings().weight.numel()
    numbers = sum(parameter.numel() for parameter in model.parameters()) - embedding
    print(f"{folder}/base: {numbers / 1e6:.0f} million parameters, {embedding / 1e6:.0f} million more in the embedding")
    (folder / "rows.json").write_text(json.dumps(_rows(24), ensure_ascii=False), encoding="utf-8")


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **names)


def _rows(count: int) -> list[dict]:
    """An instruction of ten characters, an answer of 100 to 400: of three bytes each."""
    draw = random.Random(0)

    def text(length: int) -> str:
        return "".join(chr(draw.randrange(0x4E00, 0x4E00 + 3000)) for _ in range(length))

    return [{"instruction": text(10), "input": "", "output": text(draw.randrange(100, 400))} for _ in range(count)]


if __name__ == "__main__":
    cli.run(main)
