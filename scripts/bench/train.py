"""Training speed: the ancestor's algorithm and finetune.py itself, in turn, on the same rows.

    python scripts/bench/train.py --base_model models/demo/merge-13b-alpaca --data_path rows.json

Every way runs in a process of its own; its first step is warm-up and not counted, nor are import and loading. One line
a way: seconds a row, useful tokens a second, ratio to the ancestor's algorithm, peak memory, share of what the machine
multiplies in bfloat16. The ways:

    ancestor          the Trainer, random order, padded to a multiple of 8, all logits (Alpaca-LoRA on today's APIs)
    ancestor-grouped  the same with rows of like length together
    ours              finetune.py
    ours-plain        finetune.py --fast False
    without-LEVER     finetune.py with one lever of its fast path off: packing, short, lora, loss, parts,
                      memory
    trl, llamafactory what peers.py says of them; each needs --peers NAME=PYTHON

random_base.py makes a LLaMA of 7B or 13B for a GPU.
"""

import json
import os
import re
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import cli

ROOT = Path(__file__).resolve().parents[2]
_CLOCK = [time.monotonic]
PEERS = str(Path(__file__).with_name("peers.py"))
SETTINGS = {
    "batch_size": 32, "micro_batch_size": 8, "num_epochs": 1, "learning_rate": 1e-4, "cutoff_len": 512,
    "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "seed": 42,
}  # fmt: skip


def main(
    base_model: str = "",  # a model folder
    data_path: str = "",  # a JSON array of rows
    ways: tuple[str, ...] = ("ancestor", "ancestor-grouped", "ours"),  # in this order
    rows: int = 96,  # so many of it
    pairs: int = 3,  # runs of each way
    more: tuple[str, ...] = (),
    cpu_time: bool = False,
    peers: tuple[str, ...] = (),
    one: str = "",
) -> None:
    """Run every way `pairs` times in turn, on the first `rows` rows of a JSON array.

    more: other flags of finetune.py (load_8bit=True,dtype=float32), for the ancestor's algorithm too where it has them.
    cpu_time: count the seconds that the process worked, not those of the clock (OMP_NUM_THREADS=1): other work on the
    machine then matters less. Not for the peers.
    peers: interpreters of the environments that hold the peers (trl=/tmp/trl/bin/python).
    one: only for the processes that this one starts.
    """
    given, pythons = (dict(pair.split("=", 1) for pair in chosen) for chosen in (more, peers))
    if one:
        _CLOCK[:] = [time.process_time] if cpu_time else _CLOCK
        _run_one(one, base_model, data_path, given)
        return
    limit = _matmul_limit()
    found: dict[str, list[dict]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        chosen = Path(folder, "rows.json")
        chosen.write_text(json.dumps(json.loads(Path(data_path).read_text(encoding="utf-8"))[:rows]), encoding="utf-8")
        for pair in range(pairs):
            for way in ways:
                where = Path(folder, f"{pair}-{way}")
                found[way].append(_measure(way, base_model, chosen, more, cpu_time, pythons, where))
                print(pair, way, found[way][-1], flush=True)
    _report(found, limit, base_model)


def _matmul_limit() -> float:
    """FLOP/s of a large bfloat16 product, on the GPU where there is one."""
    import torch

    size, device = (8192, "cuda") if torch.cuda.is_available() else (2048, "cpu")
    one = torch.randn(size, size, device=device).bfloat16()
    best = float("inf")
    for _ in range(12):
        begin = time.perf_counter()
        (one @ one)[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def _measure(
    way: str, base_model: str, data_path: Path, more: tuple[str, ...], cpu_time: bool, peers: dict, out: Path
) -> dict:
    command = [sys.executable, __file__, "--one", way, *(["--more", ",".join(more)] if more else [])]
    command += ["--cpu_time", str(cpu_time)]
    if way in peers:
        settings = json.dumps(SETTINGS)
        command = [sys.executable, PEERS, "--peer", way, "--python", peers[way], "--settings", settings]
    command += ["--base_model", base_model, "--data_path", str(data_path)]
    environment = {**os.environ, "BENCH_OUT": str(out), "DREAMERGPT_CACHE": str(out.parent / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{way} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _run_one(way: str, base_model: str, data_path: str, given: dict) -> None:
    if way.startswith("ancestor"):
        steps = _ancestor(base_model, data_path, given, way.endswith("grouped"))
    else:
        steps = _ours(way, base_model, data_path, given)
    import torch

    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    counted = steps[1:]  # the first is warm-up
    print(json.dumps({name: sum(step[name] for step in counted) for name in counted[0]} | {"peak": peak}))


def _ours(way: str, base_model: str, data_path: str, given: dict) -> list[dict]:
    """finetune.py itself; steps as its metrics.jsonl has them."""
    from utils import fast, hooks

    hooks.time = SimpleNamespace(monotonic=_CLOCK[0])
    if way.startswith("without-"):
        _take_away(fast, way.removeprefix("without-"))
    elif way not in ("ours", "ours-plain"):
        raise SystemExit(f"no such way: {way}")
    out = os.environ["BENCH_OUT"]
    flags = {**SETTINGS, "train_on_inputs": False, "load_8bit": False, "val_set_size": 0, **_typed(given)}
    train = runpy.run_path(str(ROOT / "finetune.py"))["train"]
    train(base_model=base_model, data_path=data_path, output_dir=out, fast=way != "ours-plain", **flags)
    lines = [json.loads(line) for line in Path(out, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    sizes = _rows_a_step(len(json.loads(Path(data_path).read_text(encoding="utf-8"))))
    return [
        {"rows": size, "seconds": line["seconds"], "tokens": line["tokens_read"], "labels": line["tokens"]}
        for line, size in zip(lines, sizes)
    ]


def _typed(given: dict) -> dict:
    return {name: {"True": True, "False": False}.get(value, value) for name, value in given.items()}


def _rows_a_step(rows: int) -> list[int]:
    size = SETTINGS["batch_size"]
    return [min(size, rows - start) for start in range(0, rows, size)]


def _take_away(fast, lever: str) -> None:
    from torch.nn import functional

    def plain(hidden, head, targets):
        return functional.cross_entropy(head(hidden).float(), targets, reduction="sum")

    without = {
        "packing": ("can_pack", lambda model: False),
        "lora": ("register", lambda config, model: None),
        "loss": ("summed_loss", plain),
        "memory": ("keep_memory", lambda: None),
        "parts": ("part_tokens", lambda device: sys.maxsize),
        "short": ("SHORT", 0),
    }
    setattr(fast, *without[lever])


def _ancestor(base_model: str, data_path: str, given: dict, grouped: bool) -> list[dict]:
    import torch
    import transformers
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model

    from utils import runtime
    from utils.encode import IGNORED, encode_rows
    from utils.prompter import Prompter

    tokenizer = transformers.AutoTokenizer.from_pretrained(base_model)
    data = json.loads(Path(data_path).read_text(encoding="utf-8"))
    rows = encode_rows(tokenizer, Prompter("alpaca"), data, SETTINGS["cutoff_len"], False)
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    bits = {"load_8bit": {"load_in_8bit": True}, "load_4bit": {"load_in_4bit": True}}
    asked = [bits[name] for name, value in given.items() if name in bits and value == "True"]
    quantisation = transformers.BitsAndBytesConfig(**asked[0]) if asked else None
    dtype = getattr(torch, given.get("dtype", "bfloat16"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base_model, dtype=dtype, quantization_config=quantisation, device_map={"": runtime.device()}
    )
    lora = LoraConfig(
        r=SETTINGS["lora_r"], lora_alpha=SETTINGS["lora_alpha"], lora_dropout=SETTINGS["lora_dropout"],
        target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
    )  # fmt: skip
    steps: list[dict] = []

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.begin = _CLOCK[0]()

        def on_step_end(self, *_, **__):
            steps.append({"seconds": _CLOCK[0]() - self.begin, "rows": 0, "tokens": 0, "labels": 0})

    class Counting(transformers.DataCollatorForSeq2Seq):
        def __call__(self, features, return_tensors=None):
            seen.append(
                (
                    len(features),
                    sum(len(row["input_ids"]) for row in features),
                    sum(label != IGNORED for row in features for label in row["labels"]),
                )
            )
            return super().__call__(features, return_tensors)

    seen: list[tuple[int, int, int]] = []
    micro, batch = SETTINGS["micro_batch_size"], SETTINGS["batch_size"]
    with tempfile.TemporaryDirectory() as out:
        arguments = transformers.TrainingArguments(
            out, per_device_train_batch_size=micro, gradient_accumulation_steps=batch // micro, num_train_epochs=1,
            learning_rate=SETTINGS["learning_rate"], logging_steps=10, save_strategy="no", report_to="none",
            use_cpu=not torch.cuda.is_available(), seed=SETTINGS["seed"], disable_tqdm=True,
            train_sampling_strategy="group_by_length" if grouped else "random",
        )  # fmt: skip
        transformers.Trainer(
            get_peft_model(model, lora), arguments, train_dataset=Dataset.from_list(rows), callbacks=[Clock()],
            data_collator=Counting(tokenizer, pad_to_multiple_of=8, padding=True),
        ).train()  # fmt: skip
    for index, counts in enumerate(seen):
        step = steps[min(index * micro // batch, len(steps) - 1)]
        for name, count in zip(("rows", "tokens", "labels"), counts):
            step[name] += count
    return steps


def _report(found: dict[str, list[dict]], limit: float, base_model: str) -> None:
    config = json.loads(Path(base_model, "config.json").read_text(encoding="utf-8"))
    body, head = _multiplications(config)
    first = next(iter(found))
    print(f"{_device()}, bfloat16 products {limit / 1e12:.2f} TFLOP/s; ratios to {first}")
    speeds = {way: [run["tokens"] / run["seconds"] for run in runs] for way, runs in found.items()}
    for way, runs in found.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(speeds[way], speeds[first]))
        shares = [(4 * body * run["tokens"] + 4 * head * run["labels"]) / run["seconds"] / limit for run in runs]
        print(
            f"{way:18} {statistics.median(run['seconds'] / run['rows'] for run in runs):6.3f} s/row "
            f"{statistics.median(speeds[way]):7.0f} tokens/s  {ratio:5.2f}x  "
            f"{statistics.median(run['peak'] for run in runs) / 1e9:5.2f} GB  {statistics.median(shares):5.1%} of it"
        )


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()


def _multiplications(config: dict) -> tuple[int, int]:
    """Weights that a token, and a learned token, is multiplied with: forward and back to the inputs are 4 FLOP each."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    keys = config.get("num_key_value_heads") or config["num_attention_heads"]
    attention = 2 * hidden * hidden + 2 * hidden * hidden * keys // config["num_attention_heads"]
    return config["num_hidden_layers"] * (attention + 3 * hidden * wide), hidden * config["vocab_size"]


if __name__ == "__main__":
    cli.run(main)
