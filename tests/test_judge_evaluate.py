"""scripts/evaluate-2-alpaca-13b.sh: what it runs, in a tree of its own, with a real judge.py and a judge on loopback.

python -m pytest tests/test_judge_evaluate.py
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_rows
from judges import KEY, serving

import generate
import judge
from utils import cli

ROOT = Path(__file__).resolve().parent.parent
NAME = "evaluate-2-alpaca-13b"
ADAPTERS = ["run-2-alpaca-13b-1", "rerun-2-alpaca-13b-2", "rerun-2-alpaca-13b-2-2", "rerun-2-alpaca-13b-3"]
# In place of python: generate.py answers with the name of the adapter's folder; judge.py is the real one.
STAND_IN = f"""#!{sys.executable}
import json, os, runpy, sys
sys.path.insert(0, os.getcwd())
if sys.argv[1] == "generate.py":
    from pathlib import Path
    from utils import rows
    given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    open("called", "a").write(given["--output_path"] + "\\n")
    asked = rows.read_prompts(given["--test_input_path"])
    target = Path(given["--output_path"])
    target.parent.mkdir(parents=True, exist_ok=True)
    answers = [row | {{"output": given["--lora_weights"] + row["instruction"]}} for row in asked]
    target.write_text(json.dumps(answers), encoding="utf-8")
else:
    sys.argv = sys.argv[1:]
    runpy.run_path("judge.py", run_name="__main__")
"""


@pytest.fixture
def tree(tmp_path) -> Path:
    """A repository with the script, the judge, four adapters and two categories of two prompts."""
    root = tmp_path / "repo with space"
    shutil.copytree(ROOT / "utils", root / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "scripts").mkdir()
    for path in ("judge.py", "scripts/env.sh", f"scripts/{NAME}.sh"):
        shutil.copy(ROOT / path, root / path)
    (root / "models/merge-13b-alpaca").mkdir(parents=True)
    (root / "models/merge-13b-alpaca/config.json").write_text("{}")
    for adapter in ADAPTERS:
        (root / "output" / adapter).mkdir(parents=True)
        (root / "output" / adapter / "adapter_model.safetensors").write_text("weights")
    (root / "test_data").mkdir()
    for category in ("01qa", "02translate"):
        rows = [{"instruction": f"{category}-{number}"} for number in (1, 2)]
        write_rows(root / "test_data" / f"{category}.json", rows)
    for path in root.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    (root / "python").write_text(STAND_IN)
    (root / "python").chmod(0o755)
    return root


def run(tree: Path, **environment: str) -> subprocess.CompletedProcess:
    env = {"PATH": os.environ["PATH"], "PYTHON": "./python", "OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    command = ["bash", str(tree / f"scripts/{NAME}.sh")]
    return subprocess.run(command, capture_output=True, text=True, env=env | environment, cwd="/")


def test_every_command_is_one_that_its_script_takes(tree):
    """PYTHON=echo prints the four adapters, then ask and table, and leaves nothing behind."""
    before = sorted(tree.rglob("*"))
    done = run(tree, PYTHON="echo", MODEL_DIR="m", OUTPUT_DIR="o")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["generate.py"] * 4 + ["judge.py"] * 2
    for line in lines[:4]:
        asked = cli.parse(generate.main, line[1:])
        assert asked["is_ui"] == "False" and asked["test_input_path"] == "./test_data"
    asked = cli.parse(judge.ask, lines[4][2:])
    assert [part.partition("=")[0] for part in asked["answers"].split(",")] == ADAPTERS
    assert cli.parse(judge.table, lines[5][2:]) == {"output_dir": f"o/{NAME}"}
    assert sorted(tree.rglob("*")) == before


def test_from_adapters_to_tables_and_again_without_asking_twice(tree):
    with serving() as server:
        done = run(tree, JUDGE_URL=server.url)
        assert done.returncode == 0, done.stderr
        assert len(server.asked) == 4 * 4
        table = tree / "output" / NAME / "table.md"
        assert f"| category | file | judged | {' | '.join(ADAPTERS)} |" in table.read_text(encoding="utf-8")
        again = run(tree, JUDGE_URL=server.url)
        assert again.returncode == 0 and len(server.asked) == 16
        targets = [f"./output/{NAME}/{adapter}/test.json" for adapter in ADAPTERS]
        assert (tree / "called").read_text().splitlines() == targets * 2  # generate.py knows what is answered


def test_what_stays_unjudged_is_in_the_tables_and_in_the_exit_code(tree):
    with serving(fault=lambda number: ("text", "不打分")) as server:
        done = run(tree, JUDGE_URL=server.url, JUDGE_MODE="faithful")
    assert done.returncode == 6
    assert "Unjudged" in (tree / "output" / NAME / "table.md").read_text(encoding="utf-8")


def test_a_refused_key_and_a_missing_adapter_end_it(tree):
    with serving(fault=lambda number: "401") as server:
        assert run(tree, JUDGE_URL=server.url).returncode == 5
    assert not (tree / "output" / NAME / "table.md").exists()
    shutil.rmtree(tree / "output" / ADAPTERS[1])
    done = run(tree)
    assert done.returncode == 4 and "run scripts/rerun-2-alpaca-13b-2.sh first" in done.stderr
