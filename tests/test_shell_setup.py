"""demo.sh and test.sh: the environment they make, and the steps of the demo."""

import os
import subprocess

import pytest
from shells import CHAIN, MAIN, Tree, flags

from utils import cli

# --- demo.sh and test.sh: the set-up ---


@pytest.fixture
def bare(tree) -> Tree:
    """A machine whose python3 is the stand-in: with `-m venv` it makes a .venv that holds the stand-in again."""
    python3 = tree.python.with_name("python3")
    python3.write_text(
        "#!/usr/bin/env bash\n"
        '[ "$1" != -c ] || exit "${TOO_OLD:-0}"\n'
        'mkdir -p .venv/bin; cp "${0%/*}/stand-in" .venv/bin/python; echo made >>.venv/made; exit "${NO_VENV:-0}"\n'
    )
    python3.chmod(0o755)
    (tree.root / "data/sample").mkdir(parents=True)
    (tree.root / "data/sample/prompts.json").write_text("[]")
    tree.model("merge-13b-alpaca", "models/demo")
    tree.data("output/demo/data")
    return tree


def set_up(tree: Tree, name: str, **variables: str) -> subprocess.CompletedProcess:
    path = f"{tree.python.parent}:{os.environ['PATH']}"
    return tree.run(name, **{"PATH": path, "PYTHON": None, **variables})


PIP = ["-m", "pip", "install", "--disable-pip-version-check", "-r", "requirements.txt"]


def test_the_set_up_happens_once_and_again_when_the_requirements_change(bare):
    assert set_up(bare, "test").returncode == 0
    assert [call[1:] for call in bare.called()] == [
        PIP,
        ["-m", "ruff", "check", "."],
        ["-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"],
    ]
    bare.forget()
    assert set_up(bare, "test").returncode == 0
    assert PIP not in [call[1:] for call in bare.called()]
    (bare.root / "requirements.txt").write_text("fire==0.7.1\n")
    assert set_up(bare, "test").returncode == 0
    assert PIP in [call[1:] for call in bare.called()]
    assert (bare.root / ".venv/made").read_text() == "made\n"


def test_arguments_of_test_sh_go_to_pytest(bare):
    assert bare.bash("scripts/test.sh", "-k", "a b", "-x").returncode == 0
    assert bare.called()[-1][1:] == ["-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-k", "a b", "-x"]
    assert not (bare.root / ".venv").exists(), "PYTHON was given"


@pytest.mark.parametrize("variables, named", [({"TOO_OLD": "1"}, "3.11"), ({"NO_VENV": "1"}, "python3-venv")])
def test_what_the_machine_lacks_is_named_and_the_next_try_starts_anew(variables, named, bare):
    done = set_up(bare, "test", **variables)
    assert done.returncode == 5
    assert done.stderr.startswith("test.sh: error: ") and named in done.stderr
    assert bare.called() == []
    assert set_up(bare, "test").returncode == 0
    assert (bare.root / ".venv/made").read_text() == ("made\n" if "TOO_OLD" in variables else "made\nmade\n")


def test_pip_that_fails_is_an_environment_fault_and_is_asked_again(bare):
    done = set_up(bare, "test", FAIL_AT="-m", FAIL_CODE="1")
    assert (done.returncode, done.stderr) == (5, "test.sh: error: pip could not install requirements.txt\n")
    bare.forget()
    assert set_up(bare, "test").returncode == 0
    assert bare.called()[0][1:] == PIP


DEMO = ["demo", "firefly", "COIG", "psyQA", *CHAIN, "generate.py", "generate.py", "merged", "demo"]


def demo_steps(tree: Tree) -> list[str]:
    steps = [
        "demo" if call[1].startswith("scripts/demo_") else name for call, name in zip(tree.called(), tree.scripts())
    ]
    return [step for step in steps if step != "-m"]


def test_the_demo_is_the_chain_with_other_values(bare):
    done = set_up(bare, "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert demo_steps(bare) == DEMO
    assert len(bare.called()) == len(DEMO) + 1
    stages = [flags(call) for call in bare.called() if call[1] == "finetune.py"]
    assert [stage["output_dir"] for stage in stages] == [f"./output/demo/{name}" for name in CHAIN]
    assert {stage["load_8bit"] for stage in stages} == {"False"}
    for call in bare.called():
        if call[1] in MAIN:
            cli.parse(MAIN[call[1]], call[2:])


@pytest.mark.parametrize("step", ["COIG", CHAIN[2], "merged"])
def test_the_demo_stops_at_its_first_failure(step, bare):
    assert set_up(bare, "demo", FAIL_AT=step, FAIL_CODE="4").returncode == 4
    assert demo_steps(bare) == DEMO[: DEMO.index(step) + 1]
