"""Types: mypy, as pyproject.toml sets it, finds nothing; every function says what it takes and gives.

python -m pytest tests/test_types.py
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def mypy(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "mypy", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_mypy_finds_nothing():
    done = mypy()
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "no issues found in" in done.stdout


def test_a_function_without_hints_is_found(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def bare(x):\n    return x\n\n\ndef half(x: int, y):\n    pass\n\n\nnumber: int = 'text'\n")
    done = mypy(wrong)
    assert done.returncode == 1
    found = [(line.split(":")[1], line.rpartition("[")[2]) for line in done.stdout.splitlines()[:-1]]
    assert set(found) == {("1", "no-untyped-def]"), ("5", "no-untyped-def]"), ("9", "assignment]")}
