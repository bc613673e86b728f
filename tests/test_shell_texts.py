"""What stands in the shell scripts and what they run: names, flags, defaults, variables, PYTHON=echo."""

import re
import shutil
import subprocess
import sysconfig
from importlib import import_module
from pathlib import Path

import pytest
from shells import (
    ALL,
    ANSWERS,
    BATCHES,
    BLOOM,
    CHAIN,
    JUDGED,
    MAIN,
    MERGES,
    NAMES,
    PAGES,
    PIPELINE,
    PIPELINES,
    RECIPES,
    ROOT,
    SET_UP,
    SOURCED,
    STAGE_NAME,
    STAGES,
    base_of,
    commands,
    flags,
    listing,
    signature,
)

from utils import cli

# --- What stands in them ---


def test_all_scripts_of_the_issue_are_there():
    assert {*CHAIN, *BLOOM, *MERGES, *PAGES, *BATCHES, PIPELINE, "pipeline-6-bloom-7b1"} <= set(NAMES)
    assert {f"{verb}-6-bloom-7b1-{column}" for verb in ("generate", "save-generate") for column in "12"} <= set(NAMES)
    assert {path.stem for path in ALL} == {*NAMES, *SOURCED, *SET_UP, *JUDGED}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_bash_can_read_it(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_shellcheck_is_content():
    """Every script here, and those of bench/ and .ci/; nothing is let pass, not even a matter of style."""
    others = [*(ROOT / "scripts/bench").glob("*.sh"), ROOT / ".ci/run"]
    checker = Path(sysconfig.get_path("scripts"), "shellcheck")
    done = subprocess.run([checker, "-x", *ALL, *others], cwd=ROOT / "scripts", capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_flag_exists_in_the_script_it_is_for(path):
    for script, names in commands(path):
        targets = list(ROOT.glob(script))
        assert targets, script
        for target in targets:
            assert not set(names) - set(signature(target)), f"{path.name} -> {target}"
        assert len(names) == len(set(names))


def test_the_commands_are_found_in_the_text():
    found = {path.stem: [script for script, _ in commands(path)] for path in ALL}
    assert all(found[name] for name in NAMES if name not in PIPELINES)
    assert found["demo"].count("generate.py") == 1 and "data/*/split.py" in found["demo"]


@pytest.mark.parametrize("path", [path for path in ALL if path.stem != "env"], ids=lambda path: path.stem)
def test_every_script_begins_by_sourcing_the_strict_mode(path):
    code = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    first = code[1] if path.stem == "setup" else code[0]
    assert re.fullmatch(r'\. "\$\(dirname -- "\$\{BASH_SOURCE\[0\]\}"\)/(env|setup)\.sh"', first)


def test_the_readme_names_every_script_and_every_variable():
    readme = (ROOT / "scripts/README.md").read_text(encoding="utf-8")
    variables = {name for path in ALL for name in re.findall(r"\$\{([A-Z][A-Z0-9_]+):-", path.read_text())}
    named = {*variables, *(path.name for path in ALL)} - {"VIRTUAL_ENV", "CONDA_PREFIX"}
    assert {name for name in named if f"`{name}`" not in readme} == set()


# --- What they run ---


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PIPELINES])
def test_the_name_tells_what_it_does(name, calls):
    script, given = calls[name][1], flags(calls[name])
    cli.parse(MAIN[script], calls[name][2:])
    if name.startswith("merge-"):
        _, size, kind = name.split("-")
        assert (script, Path(given["output_dir"]).name) == ("merge_lora.py", name)
        assert given["base_model"] == f"./models/llama-{size}"
        assert given["lora_model"] == f"./models/chinese-{kind}-lora-{size}"
        return
    verb, experiment, base, column = STAGE_NAME.fullmatch(name).groups()
    twin = "_bloom" if base.startswith("bloom-") else ""
    assert given["base_model"] == f"./models/{base_of(name)}"
    if verb in ("run", "rerun"):
        assert (script, given["output_dir"]) == (f"finetune{twin}.py", f"./output/{name}")
        assert ("resume_from_checkpoint" in given) == (verb == "rerun")
    else:
        tuned = Path(given["lora_weights"]).name
        assert script == f"generate{twin}.py"
        assert tuned in STAGES and tuned.endswith(f"run-{experiment}-{base}-{column}")
        assert given["is_ui"] == str(verb == "generate")
        assert ("test_input_path" in given) == (verb == "save-generate")


@pytest.mark.parametrize("name", STAGES)
def test_the_defaults_are_the_originals(name, calls):
    given = flags(calls[name])
    assert name in RECIPES, "a new stage: give it its line in the table"
    parent, data, validation = RECIPES[name]
    assert given.pop("resume_from_checkpoint", None) == (parent and f"./output/{parent}")
    assert given == {
        "base_model": f"./models/{base_of(name)}",
        "data_path": f"./data/{data}",
        "output_dir": f"./output/{name}",
        "load_8bit": "True",
        "batch_size": "256",
        "micro_batch_size": "8",
        "num_epochs": "3",
        "learning_rate": "1e-4",
        "cutoff_len": "512",
        "val_set_size": validation,
        "lora_r": "8",
        "lora_alpha": "16",
        "lora_dropout": "0.05",
        "lora_target_modules": "[query_key_value]" if name in BLOOM else "[q_proj,v_proj]",
        "train_on_inputs": "False",
        "group_by_length": "True",
    }


@pytest.mark.parametrize("name", BATCHES)
def test_the_answers_are_given_in_8_bit_as_the_original_evaluated(name, calls):
    given = flags(calls[name])
    assert given["load_8bit"] == "True"
    assert (given["test_input_path"], given["max_new_tokens"]) == ("./test_data/01qa.json", "512")
    assert (ROOT / given["test_input_path"]).is_file()


def test_every_start_is_another_scripts_output(calls):
    calls = [flags(call) for call in calls.values()]
    written = {call["output_dir"] for call in calls if "output_dir" in call}
    adapters = {call["output_dir"] for call in calls if "data_path" in call}
    starts = {call[key] for call in calls for key in ("resume_from_checkpoint", "lora_weights") if key in call}
    assert starts == adapters, "each stage is continued or talked to, and nothing else is"
    bases = {call["base_model"] for call in calls if "lora_model" not in call}
    assert bases - {"./models/bloom-7b1"} <= written  # BLOOM is taken as it was published


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (CHAIN[0], BLOOM[0], *MERGES, PIPELINE)])
def test_the_parent_asked_for_is_the_parent_used(name):
    text = (ROOT / "scripts" / f"{name}.sh").read_text()
    assert re.findall(r"^need_stage (\S+)$", text, re.MULTILINE) == re.findall(r'"\$OUTPUT_DIR/(\w\S+)"', text)


def test_every_data_file_is_one_that_a_converter_writes(tmp_path):
    for name in (path.parent.name for path in (ROOT / "data").glob("*/split.py")):
        converter = import_module(f"data.{name}.split")
        converter.main(input=str(ROOT / "data/sample" / name), output_dir=str(tmp_path / name))
    assert {data for _, data, _ in RECIPES.values()} <= {
        str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*.json")
    }


def test_the_environment_overrides(tree):
    tree.ready()
    tree.stage(CHAIN[0])
    shutil.move(tree.root / "output", tree.root / "elsewhere")
    tree.model("merge-13b-alpaca", "weights")
    tree.data("rows")
    folders = {"MODEL_DIR": "weights", "DATA_DIR": "rows", "OUTPUT_DIR": "elsewhere"}
    values = {
        "LOAD_8BIT": "False", "BATCH_SIZE": "4", "MICRO_BATCH_SIZE": "2", "NUM_EPOCHS": "1", "LEARNING_RATE": "3e-4",
        "CUTOFF_LEN": "64", "VAL_SET_SIZE": "0",
    }  # fmt: skip
    assert tree.run(CHAIN[1], **folders, **values).returncode == 0
    given = flags(tree.called()[0])
    assert {name: given[name.lower()] for name in values} == values
    assert given["base_model"] == "weights/merge-13b-alpaca"
    assert given["data_path"] == "rows/COIG/coig-part1.json"
    assert (given["output_dir"], given["resume_from_checkpoint"]) == (f"elsewhere/{CHAIN[1]}", f"elsewhere/{CHAIN[0]}")


def test_the_prompts_and_the_answers_length_can_be_chosen(tree):
    tree.complete()
    (tree.root / "mine.json").write_text("[]")
    assert tree.run(ANSWERS, TEST_INPUT="mine.json", MAX_NEW_TOKENS="7").returncode == 0
    given = flags(tree.called()[0])
    assert (given["test_input_path"], given["max_new_tokens"]) == ("mine.json", "7")


SETTINGS = sorted(
    {name for path in ALL for name in re.findall(r"\$\{([A-Z][A-Z0-9_]+):?[-}]", path.read_text())} - {"PYTHON"}
)


@pytest.mark.parametrize("name", [CHAIN[1], ANSWERS])
def test_an_empty_variable_is_an_unset_one(name, tree):
    tree.complete()
    for variables in ({}, dict.fromkeys(SETTINGS, "")):
        done = tree.run(name, **variables)
        assert (done.returncode, done.stderr) == (0, "")
    unset, empty = tree.called()
    assert unset == empty


def test_a_variable_that_is_misspelt_in_a_script_ends_it(tree):
    done = tree.bash("-c", '. scripts/env.sh; "$PYTHON" x.py --rate "$LEARNING_RAT"; echo reached')
    assert done.returncode != 0 and "LEARNING_RAT: unbound variable" in done.stderr
    assert (done.stdout, tree.called()) == ("", [])


# --- PYTHON=echo ---


@pytest.mark.parametrize("name", [*NAMES, "demo", "test"])
def test_echo_prints_the_commands_and_does_nothing(name, tree):
    before = listing(tree.root)
    done = tree.run(name, PYTHON="echo")
    assert (done.returncode, done.stderr) == (0, "")
    assert listing(tree.root) == before
    lines = done.stdout.splitlines()
    assert len(lines) == {"demo": 12, "test": 2}.get(name, len(PIPELINES.get(name, [name])))
    assert all(re.match(r"(\S+\.py --|-m (ruff|pytest) )", line) for line in lines)


def test_echo_prints_the_very_arguments_that_run(tree):
    told = tree.run(CHAIN[1], PYTHON="echo").stdout.split()
    tree.complete().run(CHAIN[1])
    assert told == tree.called()[0][1:]
