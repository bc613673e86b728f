"""scripts/prepare-data.sh: what it converts, what it says is missing, its exit codes.

python -m pytest tests/test_converters_script.py
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def prepare(data_dir: Path, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess:
    settings = {**os.environ, "DATA_DIR": str(data_dir), "PYTHON": python, "HF_HUB_OFFLINE": "1"}
    command = ["bash", str(ROOT / "scripts" / "prepare-data.sh"), *arguments]
    return subprocess.run(command, env=settings, capture_output=True, text=True)


def test_it_converts_what_is_there_and_names_what_is_missing(tmp_path):
    folder = tmp_path / "my data; $(touch x)"
    shutil.copytree(ROOT / "data" / "sample" / "belle", folder / "raw" / "belle")
    done = prepare(folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "belle" / "belle.json").is_file()
    assert "raw/psyQA/PsyQA_full.json (github.com/thu-coai/PsyQA, on its user agreement; never fetched)" in done.stdout
    assert "COIG/exam_instructions.jsonl (BAAI/COIG on the Hub: --download fetches it)" in done.stdout
    assert "raw/belle" not in done.stdout.split("rows in")[0]
    assert done.stdout.splitlines()[-1].startswith("1 sets converted into")


def test_its_exit_codes(tmp_path):
    nothing = prepare(tmp_path)
    assert nothing.returncode == 3 and "no raw set lies under" in nothing.stderr
    unknown = prepare(tmp_path, "--downlaod")
    assert unknown.returncode == 2 and "--downlaod" in unknown.stderr
    offline = prepare(tmp_path, "--download")
    assert offline.returncode == 5 and "the Hub cannot be reached" in offline.stderr.splitlines()[0]
    (tmp_path / "raw" / "belle").mkdir(parents=True)
    (tmp_path / "raw" / "belle" / "Belle_open_source_0.5M.json").write_text("{broken")
    broken = prepare(tmp_path)
    assert broken.returncode == 3 and "Belle_open_source_0.5M.json:1:" in broken.stderr.splitlines()[0]


def test_python_echo_only_prints(tmp_path):
    printed = prepare(tmp_path, "--download", python="echo")
    assert printed.returncode == 0 and not list(tmp_path.iterdir())
    commands = printed.stdout.splitlines()
    sets = list((ROOT / "data").glob("*/split.py"))
    assert len(commands) == 1 + len(sets) >= 8
    assert commands[0].startswith("scripts/fetch_data.py") and "psyQA" not in commands[0]
