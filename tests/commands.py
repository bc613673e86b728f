"""What the tests of the command line share: the scripts, a call of one, and what it refused."""

import re
import subprocess
import sys
from pathlib import Path

import finetune
import finetune_bloom
import generate
import generate_bloom
import merge_lora
from utils import cli

ROOT = Path(__file__).resolve().parent.parent
MAIN = {
    "finetune.py": finetune.train,
    "generate.py": generate.main,
    "finetune_bloom.py": finetune_bloom.train,
    "generate_bloom.py": generate_bloom.main,
    "merge_lora.py": merge_lora.main,
}
HEAVY = {"torch", "transformers", "peft", "gradio", "datasets", "bitsandbytes"}
LORA = ("q_proj", "v_proj")

# Alpaca-LoRA's flags and ours after them: a user's script from 2023 means the same here.
FLAGS = {
    "finetune.py": {
        "base_model": "", "data_path": "", "output_dir": "./lora-alpaca",
        "batch_size": 128, "micro_batch_size": 4, "num_epochs": 3, "learning_rate": 3e-4, "cutoff_len": 256,
        "val_set_size": 2000, "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "lora_target_modules": LORA,
        "train_on_inputs": True, "add_eos_token": False, "group_by_length": False,
        "wandb_project": "", "wandb_run_name": "", "wandb_watch": "", "wandb_log_model": "",
        "resume_from_checkpoint": "", "prompt_template_name": "alpaca",
        "force_base": False, "replay": 0.0, "max_forget": float("inf"),
        "load_8bit": True, "load_4bit": False, "seed": 42, "overwrite": False,
        "use_rslora": False, "neftune_noise_alpha": 0.0,
    },
    "generate.py": {
        "load_8bit": False, "base_model": "", "lora_weights": "", "prompt_template": "", "server_name": "127.0.0.1",
        "share_gradio": False, "gpu_id": "", "is_ui": True, "test_input_path": "",
        "num_beams": 1, "temperature": 0, "top_p": 0.75, "top_k": 40, "max_new_tokens": 512, "seed": 42,
    },
    "merge_lora.py": {"base_model": "", "lora_model": "", "output_dir": ""},
}  # fmt: skip
FLAGS["finetune_bloom.py"] = {
    **FLAGS["finetune.py"],
    "output_dir": "./lora-bloom",
    "lora_target_modules": ("query_key_value",),
}
FLAGS["generate_bloom.py"] = FLAGS["generate.py"]


def command(script: str, *flags: str) -> list[str]:
    """A line that would run, with `flags` after it or, where it has them already, in their place."""
    usable = {
        "finetune.py": ["--base_model=base", "--data_path=rows.json", "--output_dir=out"],
        "generate.py": ["--base_model=base", "--lora_weights=adapter"],
        "batch": ["--base_model=base", "--lora_weights=adapter", "--is_ui=False", "--test_input_path=prompts.json"],
        "merge_lora.py": ["--base_model=base", "--lora_model=adapter", "--output_dir=out"],
    }[script]
    replaced = {flag.partition("=")[0] for flag in flags}
    return [flag for flag in usable if flag.partition("=")[0] not in replaced] + list(flags)


def ends(
    main, argv: list[str], monkeypatch, capsys, script: str = "probe.py", several: bool = False
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr without the progress bars that erased themselves) of a line, run in this process."""
    monkeypatch.setattr(sys, "argv", [script, *argv])
    code = 0
    try:
        cli.run(main, several=several)
    except SystemExit as left:
        code = left.code
    out, err = capsys.readouterr()
    return code, out, re.sub(r"[^\n]*\r", "", err)


def refusal(script: str, argv: list[str], monkeypatch, capsys) -> str:
    """The message of a script that refuses its arguments: exit code 2, one line, nothing done."""
    before = sorted(Path().rglob("*"))
    code, out, line = ends(MAIN[script], argv, monkeypatch, capsys, script, several=script != "merge_lora.py")
    assert code == 2
    assert out == ""
    assert line.startswith(f"{script}: error: ") and line.count("\n") == 1 and line.endswith("\n")
    assert sorted(Path().rglob("*")) == before
    return line.removeprefix(f"{script}: error: ").rstrip("\n")


def real(script: str, *argv: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """The script as a user starts it."""
    return subprocess.run([sys.executable, *python, ROOT / script, *argv], capture_output=True, text=True)


def received(argv: list[str], monkeypatch, capsys) -> dict:
    """What a function gets from a command line that is in order."""
    got = {}

    def probe(
        name: str = "", number: int = 1, rate: float = 0.5, on: bool = False, off: bool = True, names: tuple = LORA
    ):
        """A probe."""
        got.update(locals(), given=cli.given_flags())

    code, _, err = ends(probe, argv, monkeypatch, capsys)
    assert (code, err) == (0, "")
    return {key: value for key, value in got.items() if key != "got"}
