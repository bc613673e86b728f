"""The time and the memory of a merge: cp, PEFT's merge_and_unload, and merge_lora.py, in turns.

    python scripts/bench/merge.py

Builds a random LLaMA (1.1 billion weights in bfloat16, 2.2 GB, 12 shards) and an adapter in a temporary folder, shard
by shard; needs 5 GB of disk there, and removes all of it. Memory is sampled from /proc (Linux).
"""

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import cli

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {
    "self_attn.q_proj": ("hidden", "hidden"),
    "self_attn.k_proj": ("kv", "hidden"),
    "self_attn.v_proj": ("kv", "hidden"),
    "self_attn.o_proj": ("hidden", "hidden"),
    "mlp.gate_proj": ("inner", "hidden"),
    "mlp.up_proj": ("inner", "hidden"),
    "mlp.down_proj": ("hidden", "inner"),
}
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, output = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(output, max_shard_size="200MB")
"""


def main(
    rounds: int = 3,  # of each way
    layers: int = 22,  # of the model
    hidden: int = 2048,  # its width
    rank: int = 8,  # of the adapter
    folder: str = "",
) -> None:
    """Print a line a way: seconds (median of the rounds), memory, and how it compares with PEFT's.

    folder: where the models are built (a temporary folder by default).
    """
    place = Path(tempfile.mkdtemp(dir=folder or None, prefix="bench-merge-"))
    try:
        build(place, layers, hidden, rank)
        ways = {
            "cp": ["cp", "-r", "base", "out"],
            "PEFT": [sys.executable, "-c", PEFT, "base", "adapter", "out"],
            "merge_lora.py": [
                sys.executable, str(ROOT / "merge_lora.py"), "--base_model", "base", "--lora_model", "adapter",
                "--output_dir", "out", "--verify", "False",
            ],
        }  # fmt: skip
        libraries = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); import sentencepiece; from utils import hub, merge, record"
        )
        bare = run([sys.executable, "-c", libraries], place)[2]
        measured = {name: [] for name in ways}
        report, hashes = {}, {}
        for _ in range(rounds):
            for name, command in ways.items():
                measured[name].append(run(command, place))
                if name == "merge_lora.py":
                    report = json.loads((place / "out/merge_report.json").read_text())
                if name != "cp" and name not in hashes:
                    hashes[name] = bits(place / "out")
                shutil.rmtree(place / "out")
        show(measured, report, hashes)
        above = statistics.median(one[2] for one in measured["merge_lora.py"]) - bare
        print(f"merge_lora.py: {above:.0f} MB of anonymous memory above the interpreter and its libraries ({bare:.0f})")
    finally:
        shutil.rmtree(place)


def build(place: Path, layers: int, hidden: int, rank: int) -> None:
    """base/ (LLaMA, 12 shards or fewer) and adapter/ (all linear layers) of random numbers."""
    import torch
    from safetensors.torch import save_file

    sizes = {"hidden": hidden, "inner": hidden * 11 // 4, "kv": hidden // 8}
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).bfloat16()

    for name in ("base", "adapter"):
        (place / name).mkdir()
    parts = [
        {"model.embed_tokens.weight": (32000, hidden)},
        {"lm_head.weight": (32000, hidden), "model.norm.weight": (hidden,)},
    ]
    adapter = {}
    for number in range(layers):
        shapes = {f"{name}.weight": (sizes[out], sizes[into]) for name, (out, into) in TARGETS.items()}
        shapes |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
        layer = {f"model.layers.{number}.{name}": shape for name, shape in shapes.items()}
        parts.append(layer)
        for name, (out, into) in TARGETS.items():
            key = f"base_model.model.model.layers.{number}.{name}"
            adapter[f"{key}.lora_A.weight"] = random(rank, sizes[into]).float()
            adapter[f"{key}.lora_B.weight"] = random(sizes[out], rank).float()
    shards = [parts[number::12] for number in range(min(12, len(parts)))]
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        held = {name: random(*shape) for part in shard for name, shape in part.items()}
        save_file(held, place / "base" / file, metadata={"format": "pt"})
        places |= dict.fromkeys(held, file)
    save_file(adapter, place / "adapter/adapter_model.safetensors")
    write(place / "base/model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    write(place / "base/tokenizer.json", {"model": {"vocab": {f"piece {number}": number for number in range(32000)}}})
    write(place / "base/config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": 32000,
        "hidden_size": hidden, "intermediate_size": sizes["inner"], "num_hidden_layers": layers,
        "num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False,
    })  # fmt: skip
    targets = [name.split(".")[1] for name in TARGETS]
    write(place / "adapter/adapter_config.json", {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 4 * rank, "target_modules": targets,
    })  # fmt: skip


def write(path: Path, value: dict) -> None:
    """A JSON file."""
    path.write_text(json.dumps(value), encoding="utf-8")


def run(command: list[str], place: Path) -> tuple[float, float, float, float]:
    """(seconds, processor seconds, peak anonymous MB, peak resident MB) of a command in `place`."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    anonymous = resident = 0.0
    with open(place / "log", "w") as log:
        process = subprocess.Popen(command, cwd=place, stdout=log, stderr=log)
        while process.poll() is None:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            sizes = {
                line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines if "Rss" in line or "VmRSS" in line
            }
            anonymous = max(anonymous, sizes.get("RssAnon", 0))
            resident = max(resident, sizes.get("VmRSS", 0))
            time.sleep(0.01)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        sys.exit((place / "log").read_text())
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, anonymous, resident


def bits(folder: Path) -> dict[str, str]:
    """{tensor name: SHA-256 of its bytes} of a model's shards."""
    import hashlib

    from utils import weights

    return {
        name: hashlib.sha256(weights.as_bytes(tensor).numpy()).hexdigest() for name, tensor in weights.read_base(folder)
    }


def show(measured: dict[str, list], report: dict, hashes: dict[str, dict]) -> None:
    """The table, where the time goes, and whether the two merges have the same bits."""
    medians = {name: [statistics.median(column) for column in zip(*runs)] for name, runs in measured.items()}
    print("| way | seconds (all rounds) | processor seconds | anonymous MB | resident MB | times as fast as PEFT |")
    print("|---|---|---|---|---|---|")
    for name, (seconds, processor, anonymous, resident) in medians.items():
        rounds = ", ".join(f"{one[0]:.1f}" for one in measured[name])
        ratio = f"{medians['PEFT'][0] / seconds:.2f} (processor {medians['PEFT'][1] / processor:.2f})"
        print(f"| {name} | {seconds:.2f} ({rounds}) | {processor:.2f} | {anonymous:.0f} | {resident:.0f} | {ratio} |")
    whole, parts = measured["merge_lora.py"][-1][0], {**report["seconds"]}
    parts["the rest"] = whole - sum(value for key, value in parts.items() if key != "all")
    del parts["all"]
    shares = ", ".join(f"{key.replace('_', ' ')} {value:.2f} s ({value / whole:.0%})" for key, value in parts.items())
    print(f"\nmerge_lora.py, last round: {shares}")
    same = sum(hashes["PEFT"].get(name) == sha256 for name, sha256 in hashes["merge_lora.py"].items())
    print(f"{same} of {len(hashes['merge_lora.py'])} tensors have PEFT's very bits")


if __name__ == "__main__":
    cli.run(main)
