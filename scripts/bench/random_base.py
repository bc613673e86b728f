"""A LLaMA of a published size with random weights, for benches on a GPU: nothing is downloaded.

    python scripts/bench/random_base.py --size 7b --tokenizer models/demo/merge-13b-alpaca --output_dir /tmp/random-7b
    python scripts/bench/train.py --base_model /tmp/random-7b --data_path rows.json --more load_8bit=True
    python scripts/bench/generate.py --base_model /tmp/random-7b

One shard a layer, in float16 as LLaMA's own; 13.5 GB for 7b, 26 GB for 13b.
"""

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import cli
from utils.errors import ArgumentFault

SIZES = {"tiny": (64, 172, 2, 4), "7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}


def main(
    size: str = "7b",  # tiny, 7b or 13b
    tokenizer: str = "",  # a model folder, whose tokenizer it gets, and rows of the embedding for it
    output_dir: str = "",  # a new folder
    seed: int = 0,  # of the weights
) -> None:
    """Write the model folder."""
    if size not in SIZES:
        raise ArgumentFault(f"--size: {size} is not one of {', '.join(SIZES)}")
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, LlamaConfig

    hidden, inner, layers, heads = SIZES[size]
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=2048, dtype="float16",
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    shapes = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).half()

    def layer(number: int) -> dict[str, torch.Tensor]:
        tensors = {f"{name}.weight": random(*shape) for name, shape in shapes.items()}
        tensors |= {f"{name}_layernorm.weight": torch.ones(hidden).half() for name in ("input", "post_attention")}
        return {f"model.layers.{number}.{name}": tensor for name, tensor in tensors.items()}

    folder = Path(output_dir)
    folder.mkdir(parents=True)
    places: dict[str, str] = {}
    for number in range(layers + 1):
        tensors = layer(number) if number < layers else _around(random, config)
        name = f"model-{number + 1:05}-of-{layers + 1:05}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    for file in Path(tokenizer).glob("tokenizer*"):
        shutil.copy(file, folder)
    print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e9:.1f} GB")


def _around(random, config) -> dict:
    """What is not a layer: embedding, head, last norm."""
    import torch

    ends = {name: random(config.vocab_size, config.hidden_size) for name in ("model.embed_tokens", "lm_head")}
    return {f"{name}.weight": tensor for name, tensor in ends.items()} | {
        "model.norm.weight": torch.ones(config.hidden_size).half()
    }


if __name__ == "__main__":
    cli.run(main)
