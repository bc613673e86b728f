"""What users would pick instead, on the same rows: TRL and LLaMA-Factory, each in an environment of its own.

    python -m venv /tmp/trl && /tmp/trl/bin/pip install trl peft
    python -m venv /tmp/lf && /tmp/lf/bin/pip install llamafactory
    python scripts/bench/train.py --ways ancestor,ours,trl,llamafactory \\
        --peers trl=/tmp/trl/bin/python,llamafactory=/tmp/lf/bin/python --base_model … --data_path …

TRL gets our token ids and labels and groups rows of like length, its fastest way; LLaMA-Factory reads the rows itself
under its alpaca template and lays them behind one another (neat_packing). Both hold the model in bfloat16. Packing
moves the borders of steps, so what is timed is a training of all rows less one of a step's rows: loading and warm-up
cancel.
"""

import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import cli

TRL = """
import json, sys, torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

base, rows, out, s = sys.argv[1], json.load(open(sys.argv[2])), sys.argv[3], json.loads(sys.argv[4])
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
settings = SFTConfig(
    out, per_device_train_batch_size=s["micro_batch_size"], num_train_epochs=1, learning_rate=s["learning_rate"],
    gradient_accumulation_steps=s["batch_size"] // s["micro_batch_size"], max_length=s["cutoff_len"], bf16=False,
    use_cpu=True, train_sampling_strategy="group_by_length", gradient_checkpointing=False, report_to="none",
    save_strategy="no", logging_steps=10, disable_tqdm=True, seed=s["seed"],
)
lora = LoraConfig(
    r=s["lora_r"], lora_alpha=s["lora_alpha"], lora_dropout=s["lora_dropout"], target_modules=["q_proj", "v_proj"],
    task_type="CAUSAL_LM",
)
trainer = SFTTrainer(
    model, settings, train_dataset=Dataset.from_list(rows), peft_config=lora,
    processing_class=AutoTokenizer.from_pretrained(base),
)
print("train_runtime", trainer.train().metrics["train_runtime"])
"""


def main(
    peer: str = "",  # trl or llamafactory
    python: str = "",  # the interpreter of its environment
    base_model: str = "",  # a model folder
    data_path: str = "",  # a JSON array of rows
    settings: str = "{}",
) -> None:
    """Print rows, seconds, tokens, labels, peak of all rows of a JSON array but those of a first step, as JSON.

    settings: the values of train.py's SETTINGS, as JSON.
    """
    chosen = json.loads(settings)
    first = chosen["batch_size"]
    data = json.loads(Path(data_path).read_text(encoding="utf-8"))
    encoded = _encoded(base_model, data, chosen["cutoff_len"])
    run, given = (_trl, encoded) if peer == "trl" else (_llamafactory, data)
    seconds = run(python, base_model, given, chosen) - run(python, base_model, given[:first], chosen)
    counted = encoded[first:]
    found = {
        "rows": len(counted),
        "seconds": seconds,
        "tokens": sum(len(row["input_ids"]) for row in counted),
        "labels": sum(label >= 0 for row in counted for label in row["labels"]),
        "peak": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }
    print(json.dumps(found))


def _encoded(base_model: str, data: list[dict], cutoff_len: int) -> list[dict]:
    """The rows as {"input_ids", "labels"}."""
    from transformers import AutoTokenizer

    from utils.encode import encode_rows
    from utils.prompter import Prompter

    rows = encode_rows(AutoTokenizer.from_pretrained(base_model), Prompter("alpaca"), data, cutoff_len, False)
    return [{name: list(row[name]) for name in ("input_ids", "labels")} for row in rows]


def _trl(python: str, base_model: str, rows: list[dict], settings: dict) -> float:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        return _runtime([python, "-c", TRL, base_model, f"{folder}/rows.json", f"{folder}/out", json.dumps(settings)])


def _llamafactory(python: str, base_model: str, rows: list[dict], settings: dict) -> float:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        Path(folder, "dataset_info.json").write_text('{"rows": {"file_name": "rows.json"}}')
        config = {
            "model_name_or_path": str(Path(base_model).resolve()), "stage": "sft", "do_train": True,
            "finetuning_type": "lora", "lora_rank": settings["lora_r"], "lora_alpha": settings["lora_alpha"],
            "lora_dropout": settings["lora_dropout"], "lora_target": "q_proj,v_proj", "dataset_dir": folder,
            "dataset": "rows", "template": "alpaca", "cutoff_len": settings["cutoff_len"], "neat_packing": True,
            "packing": True, "per_device_train_batch_size": settings["micro_batch_size"], "num_train_epochs": 1,
            "gradient_accumulation_steps": settings["batch_size"] // settings["micro_batch_size"],
            "learning_rate": settings["learning_rate"], "output_dir": f"{folder}/out", "save_strategy": "no",
            "report_to": "none", "use_cpu": True, "infer_dtype": "bfloat16", "disable_gradient_checkpointing": True,
            "overwrite_cache": True, "seed": settings["seed"], "disable_tqdm": True, "preprocessing_num_workers": 1,
        }  # fmt: skip
        Path(folder, "train.yaml").write_text(json.dumps(config))
        return _runtime([f"{Path(python).parent}/llamafactory-cli", "train", f"{folder}/train.yaml"])


def _runtime(command: list[str]) -> float:
    """The peer's own clock: seconds inside its training loop."""
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"train_runtime\W+(?:(\d+):(\d+):)?([\d.]+)", done.stdout + done.stderr)
    if done.returncode or not found:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


if __name__ == "__main__":
    cli.run(main)
