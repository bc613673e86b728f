"""The published models: each chain of scripts, walked with PYTHON=echo, does what the table of 2023 says.

python -m pytest tests/test_recipes.py
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
from shells import ALL, MAIN

import finetune
import generate
from utils import cli

ROOT = Path(__file__).resolve().parent.parent
HOT_13B, HOT_7B, BLOOM = "./models/merge-13b-alpaca", "./models/merge-7b-alpaca", "./models/bloom-7b1"
FIREFLY_0, FIREFLY_1 = ("firefly/firefly-train-0.json", "2000"), ("firefly/firefly-train-1.json", "2000")
COIG_PART1, COIG_TRANSLATE = ("COIG/coig-part1.json", "200"), ("COIG/coig-translate.json", "500")
PSYQA_5 = ("psyQA/psyqa-5.json", "200")

# model: its base, then stage by stage (script, (data under DATA_DIR, rows held out)); each goes on from the one before.
TABLE = {
    "D13b-1-3-1": (HOT_13B, [
        ("run-1-alpaca-13b-2", COIG_PART1),
        ("rerun-1-alpaca-13b-2-2", COIG_TRANSLATE),
        ("rerun-1-alpaca-13b-3-1", PSYQA_5),
    ]),
    "D13b-2-2-2": (HOT_13B, [
        ("run-2-alpaca-13b-1", FIREFLY_0),
        ("rerun-2-alpaca-13b-2", COIG_PART1),
        ("rerun-2-alpaca-13b-2-2", COIG_TRANSLATE),
    ]),
    "D13b-2-3": (HOT_13B, [
        ("run-2-alpaca-13b-1", FIREFLY_0),
        ("rerun-2-alpaca-13b-2", COIG_PART1),
        ("rerun-2-alpaca-13b-2-2", COIG_TRANSLATE),
        ("rerun-2-alpaca-13b-3", PSYQA_5),
    ]),
    "D7b-4-1": (HOT_7B, [("run-4-alpaca-7b-1", FIREFLY_0)]),
    "D13b-3-3": (HOT_13B, [
        ("run-2-alpaca-13b-1", FIREFLY_0),
        ("rerun-2-alpaca-13b-2", COIG_PART1),
        ("rerun-2-alpaca-13b-2-2", COIG_TRANSLATE),
        ("rerun-2-alpaca-13b-3", PSYQA_5),
        ("rerun-3-alpaca-13b-3", FIREFLY_1),
    ]),
    "D7b-5-1": (HOT_7B, [("run-4-alpaca-7b-1", FIREFLY_0), ("rerun-5-alpaca-7b-1", FIREFLY_1)]),
}  # fmt: skip
# model: its pipeline, where it has one.
PIPELINES = {
    "D13b-1-3-1": "pipeline-1-alpaca-13b",
    "D13b-2-3": "pipeline-2-alpaca-13b",
    "D13b-3-3": "pipeline-3-alpaca-13b",
    "D7b-4-1": "pipeline-4-alpaca-7b",
    "D7b-5-1": "pipeline-5-alpaca-7b",
}
# The same in every stage, as the original trained.
TRAINING = {
    "load_8bit": "True", "batch_size": "256", "micro_batch_size": "8", "num_epochs": "3", "learning_rate": "1e-4",
    "cutoff_len": "512", "lora_r": "8", "lora_alpha": "16", "lora_dropout": "0.05",
    "lora_target_modules": "[q_proj,v_proj]", "train_on_inputs": "False", "group_by_length": "True",
}  # fmt: skip
HOT_STARTS = {
    "merge-13b-alpaca": ("./models/llama-13b", "./models/chinese-alpaca-lora-13b", HOT_13B),
    "merge-7b-alpaca": ("./models/llama-7b", "./models/chinese-alpaca-lora-7b", HOT_7B),
}


# What V0.2 trained on BLOOM, whose weights were not published under a name of their own.
BLOOM_STAGES = [("run-6-bloom-7b1-1", ("belle/belle.json", "2000")), ("rerun-6-bloom-7b1-2", FIREFLY_0)]


def told(script: str) -> list[tuple[str, dict[str, str]]]:
    """(Python script, flags) of every command that a shell script would run."""
    environment = {"PATH": os.environ["PATH"], "PYTHON": "echo"}
    done = subprocess.run(
        ["bash", f"scripts/{script}.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(words[0], dict(zip((word[2:] for word in words[1::2]), words[2::2]))) for words in lines]


def expected(base: str, stages: list) -> list[tuple[str, dict[str, str]]]:
    """The commands that the table asks for."""
    commands, parent = [], {}
    script, fixed = "finetune.py", TRAINING
    if base == BLOOM:
        script, fixed = "finetune_bloom.py", {**TRAINING, "lora_target_modules": "[query_key_value]"}
    for name, (data, held_out) in stages:
        own = {"base_model": base, "data_path": f"./data/{data}", "output_dir": f"./output/{name}"}
        commands.append((script, own | fixed | {"val_set_size": held_out} | parent))
        parent = {"resume_from_checkpoint": f"./output/{name}"}
    return commands


@pytest.mark.parametrize("model", TABLE)
def test_the_chain_of_a_published_model_is_the_tables(model):
    base, stages = TABLE[model]
    commands = [command for name, _ in stages for command in told(name)]
    assert commands == expected(base, stages)
    for _, flags in commands:
        cli.parse(finetune.train, [f"--{name}={value}" for name, value in flags.items()])
    (hot_start,) = (name for name, parts in HOT_STARTS.items() if parts[2] == base)
    keys = ("base_model", "lora_model", "output_dir")
    assert told(hot_start) == [("merge_lora.py", dict(zip(keys, HOT_STARTS[hot_start])))]


@pytest.mark.parametrize("model", TABLE)
def test_a_published_model_has_its_page_and_its_answers(model):
    base, stages = TABLE[model]
    last = stages[-1][0]
    numbers = last.partition("-")[2]
    common = {"base_model": base, "lora_weights": f"./output/{last}", "load_8bit": "True"}
    assert told(f"generate-{numbers}") == [("generate.py", common | {"is_ui": "True"})]
    ((script, flags),) = told(f"save-generate-{numbers}")
    assert (script, flags["is_ui"], flags["max_new_tokens"]) == ("generate.py", "False", "512")
    assert flags.items() >= common.items()
    cli.parse(generate.main, [f"--{name}={value}" for name, value in flags.items()])


@pytest.mark.parametrize("model", PIPELINES)
def test_a_pipeline_is_the_chain_and_then_the_answers(model):
    base, stages = TABLE[model]
    numbers = stages[-1][0].partition("-")[2]
    assert told(PIPELINES[model]) == [*expected(base, stages), *told(f"save-generate-{numbers}")]


def test_blooms_pipeline_is_its_two_stages_and_then_the_answers():
    answers = told("save-generate-6-bloom-7b1-2")
    assert told("pipeline-6-bloom-7b1") == [*expected(BLOOM, BLOOM_STAGES), *answers]
    for script, flags in told("pipeline-6-bloom-7b1"):
        cli.parse(MAIN[script], [f"--{name}={value}" for name, value in flags.items()])
    common = {"base_model": BLOOM, "lora_weights": "./output/rerun-6-bloom-7b1-2", "load_8bit": "True"}
    assert told("generate-6-bloom-7b1-2") == [("generate_bloom.py", common | {"is_ui": "True"})]
    assert answers[0][0] == "generate_bloom.py" and answers[0][1].items() >= common.items()


def test_every_llama_stage_belongs_to_a_published_model():
    stages = {path.stem for path in ALL if "run-" in path.stem and "-alpaca-" in path.stem}
    assert stages == {name for _, stages in TABLE.values() for name, _ in stages}


@pytest.mark.parametrize("model", TABLE)
def test_the_name_of_a_model_is_that_of_its_last_stage(model):
    size, numbers = re.fullmatch(r"D(\d+b)-(.+)", model).groups()
    experiment, _, column = numbers.partition("-")
    assert re.fullmatch(rf"(re)?run-{experiment}-alpaca-{size}-{column}", TABLE[model][1][-1][0])


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
def test_a_readme_shows_each_chain_and_its_pipeline(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    for model, (_, stages) in TABLE.items():
        (row,) = re.findall(rf"^\| {model}(?: \(|（)V.*$", text, re.MULTILINE)
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[3] == " → ".join(name for name, _ in stages), model
        assert model not in PIPELINES or cells[4] == f"`{PIPELINES[model]}.sh`", model


def test_the_scripts_readme_has_a_line_a_stage():
    text = (ROOT / "scripts/README.md").read_text(encoding="utf-8")
    parents = {}
    for stages in (*(stages for _, stages in TABLE.values()), BLOOM_STAGES):
        for (name, (data, held_out)), (parent, _) in zip(stages, [("hot start", None), *stages]):
            parent = "BLOOM-7B1" if name == BLOOM_STAGES[0][0] else parent
            parents[name] = f"| `{name}.sh` | {parent} | `{data}` | {held_out} | "
    for name, line in parents.items():
        assert line in text, name
