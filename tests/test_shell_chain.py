"""The shell scripts as a chain: what a stage waits for, and where a chain stops."""

import os
import re
import signal
import subprocess
import time

import pytest
from shells import ANSWERS, BATCHES, BLOOM, CHAIN, MERGES, PAGES, PIPELINE, PIPELINES, RECIPES, ROOT, Tree

# --- Before a start ---


def refused(done: subprocess.CompletedProcess, name: str, code: int, tree: Tree) -> str:
    """The message of a script that did not start: the exit code, one line with its name, nothing run."""
    assert done.returncode == code
    assert done.stderr.startswith(f"{name}.sh: error: ") and done.stderr.count("\n") == 1
    assert tree.called() == []
    return done.stderr.removeprefix(f"{name}.sh: error: ").rstrip("\n")


@pytest.mark.parametrize("name", [*CHAIN[1:], BLOOM[1], "generate-6-bloom-7b1-1", *PAGES, *BATCHES])
def test_a_stage_waits_for_its_parent_and_names_the_script(name, tree):
    tree.ready()
    (parent,) = re.findall(r"^need_stage (\S+)$", (tree.root / "scripts" / f"{name}.sh").read_text(), re.MULTILINE)
    message = refused(tree.run(name), name, 4, tree)
    assert message == f"./output/{parent} is not complete: run scripts/{parent}.sh first"


@pytest.mark.parametrize("status, weights", [("running", "weights"), ("complete", ""), (None, ""), ("running", "")])
def test_a_folder_is_not_a_finished_stage(status, weights, tree):
    tree.ready().stage(CHAIN[0], status, weights)
    assert "is not complete" in refused(tree.run(CHAIN[1]), CHAIN[1], 4, tree)


def test_a_parent_with_a_run_json_and_no_weights_is_not_complete(tree):
    (tree.ready().stage(CHAIN[0]) / "adapter_model.safetensors").unlink()
    refused(tree.run(CHAIN[1]), CHAIN[1], 4, tree)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_downloaded_adapter_is_a_finished_stage(file, tree):
    folder = tree.ready().stage(CHAIN[0], status=None)
    (folder / "adapter_model.safetensors").rename(folder / file)
    assert tree.run(CHAIN[1]).returncode == 0
    assert len(tree.called()) == 1


@pytest.mark.parametrize("name", [*CHAIN, *BLOOM])
def test_missing_data_names_the_file_and_the_converter(name, tree):
    data = RECIPES[name][1]
    (tree.complete().root / "data" / data).unlink()
    message = refused(tree.run(name), name, 3, tree)
    converter = f"data/{data.partition('/')[0]}/split.py"
    assert message == f"./data/{data} is missing: convert the raw set with {converter}"
    assert (ROOT / converter).is_file()


def test_missing_prompts_name_the_variable(tree):
    message = refused(tree.complete().run(ANSWERS, TEST_INPUT="none.json"), ANSWERS, 3, tree)
    assert message == "none.json is missing: name your prompts in TEST_INPUT"


@pytest.mark.parametrize("name", [*CHAIN, *PAGES, *BATCHES])
def test_a_missing_base_names_the_merge(name, tree):
    (tree.complete().root / "models/merge-13b-alpaca/config.json").unlink()
    message = refused(tree.run(name), name, 4, tree)
    assert message == "./models/merge-13b-alpaca is missing: run scripts/merge-13b-alpaca.sh first"


@pytest.mark.parametrize("name", BLOOM)
def test_a_missing_bloom_is_to_be_put_there(name, tree):
    (tree.complete().root / "models/bloom-7b1/config.json").unlink()
    message = refused(tree.run(name), name, 4, tree)
    assert message == "./models/bloom-7b1 is missing: put BLOOM-7B1 there, in the Hugging Face form"


@pytest.mark.parametrize("name", MERGES)
def test_a_merge_names_the_missing_llama(name, tree):
    size = name.split("-")[1]
    message = refused(tree.run(name), name, 4, tree)
    assert message == f"./models/llama-{size} is missing: put LLaMA-{size.upper()} there, in the Hugging Face form"


def test_the_code_of_the_python_command_is_the_scripts(tree):
    assert tree.ready().run(CHAIN[0], FAIL_AT=CHAIN[0], FAIL_CODE="143").returncode == 143


# --- The chain ---


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_is_all_the_stages_that_made_what_answers(name):
    *stages, answers = PIPELINES[name]
    ancestry = re.findall(r"^need_stage (\S+)$", (ROOT / "scripts" / f"{answers}.sh").read_text(), re.MULTILINE)
    while parent := RECIPES[ancestry[0]][0]:
        ancestry.insert(0, parent)
    assert stages == ancestry
    assert answers.startswith(f"save-generate-{name.removeprefix('pipeline-')}-")


def test_the_pipeline_runs_all_in_order(tree):
    done = tree.ready().run(PIPELINE)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree.scripts() == [*CHAIN, "generate.py"]
    assert [line for line in done.stdout.splitlines() if line.startswith("===")] == [
        f"=== {n}" for n in [*CHAIN, ANSWERS]
    ]


@pytest.mark.parametrize("position, code", [(0, 3), (1, 1), (2, 5), (3, 143), (4, 4)])
def test_a_failing_stage_stops_the_chain_and_a_rerun_goes_on(position, code, tree):
    failing = [*CHAIN, ANSWERS][position]
    calls = [*CHAIN, "generate.py"]
    done = tree.ready().run(PIPELINE, FAIL_AT=calls[position], FAIL_CODE=str(code))
    assert done.returncode == code
    assert tree.scripts() == calls[: position + 1]
    message = f"{PIPELINE}.sh: error: stopped: {failing}.sh failed; run this again to go on from there\n"
    assert done.stderr == message
    tree.forget()
    assert tree.run(PIPELINE).returncode == 0
    assert tree.scripts() == calls


def test_the_pipeline_stops_where_something_is_missing(tree):
    (tree.ready().root / "data" / RECIPES[CHAIN[1]][1]).unlink()
    done = tree.run(PIPELINE)
    assert done.returncode == 3
    assert tree.scripts() == CHAIN[:1]
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [f"{CHAIN[1]}.sh", f"{PIPELINE}.sh"]


def test_a_stage_that_ends_well_without_an_adapter_stops_the_chain(tree):
    tree.ready()
    done = tree.run(PIPELINE, FAIL_AT=CHAIN[0], FAIL_CODE="0")
    assert done.returncode == 4
    assert tree.scripts() == CHAIN[:1]
    assert f"run scripts/{CHAIN[0]}.sh first" in done.stderr


@pytest.mark.parametrize("name, wrong", [(PIPELINE, CHAIN[1]), (CHAIN[0], CHAIN[0])])
def test_a_failure_behind_tee_is_seen(name, wrong, tree):
    log = f"bash scripts/{name}.sh 2>&1 | tee log.txt"
    done = tree.ready().bash("-o", "pipefail", "-c", log, FAIL_AT=wrong, FAIL_CODE="5")
    assert done.returncode == 5
    assert name != PIPELINE or f"{wrong}.sh failed" in (tree.root / "log.txt").read_text()


def test_env_makes_a_script_see_a_failure_behind_tee(tree):
    done = tree.bash(
        "-c", '. scripts/env.sh; "$PYTHON" x.py | tee log.txt; echo reached', FAIL_AT="x.py", FAIL_CODE="5"
    )
    assert (done.returncode, done.stdout) == (5, "")


@pytest.mark.parametrize("saves_first", ["", "yes"], ids=["killed by the signal", "saves, then leaves with 130"])
@pytest.mark.parametrize("name", [PIPELINE, CHAIN[1]])
def test_ctrl_c_ends_the_chain(name, saves_first, tree):
    tree.ready()
    if name != PIPELINE:
        tree.stage(CHAIN[0])
    process = subprocess.Popen(
        ["bash", f"scripts/{name}.sh"],
        cwd=tree.root,
        env=tree.environment(WAIT_AT=CHAIN[1], SAVES_FIRST=saves_first),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell would hand down "ignore"
    )
    try:
        deadline = time.monotonic() + 30
        while not (tree.calls.parent / "waiting").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)  # until the last process has closed stderr
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode  # as a shell shows it
    assert code == 130
    assert tree.scripts()[-1] == CHAIN[1]
