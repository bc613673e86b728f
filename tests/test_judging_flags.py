"""The command line of judge.py: its commands, their flags, what is refused and in which words.

python -m pytest tests/test_judging_flags.py
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from judges import write_case

from utils import checks, cli
from utils.errors import ArgumentFault

ROOT = Path(__file__).resolve().parent.parent


def flags_of(tmp_path: Path, **changed: object) -> dict:
    usual = {
        "base_url": "http://127.0.0.1:1/v1",
        "mode": "robust",
        "concurrency": 4,
        "temperature": 0.0,
        "timeout": 9.0,
    }
    return {**write_case(tmp_path), **usual, "seed": 42, **changed}


def test_answers_become_files_by_system(tmp_path):
    flags = flags_of(tmp_path)
    assert checks.judging(flags) == dict(part.split("=") for part in flags["answers"].split(","))
    assert list(checks.judging({**flags, "answers": f" a = {tmp_path}/ChatGPT.json"})) == ["a"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answers": ""}, "--answers is missing"),
        ({"answers": "x.json"}, '--answers: "x.json" is not NAME=FILE'),
        ({"answers": "a=,b"}, '"a=" is not NAME=FILE'),
        ({"answers": "a=nowhere.json"}, "--answers: nowhere.json does not exist"),
        ({"answers": "a|b=nowhere.json"}, "the name a|b holds one of"),
        ({"answers": "a=x.json,a=y.json"}, "a is given twice"),
        ({"answers": ",".join(f"s{n}={__file__}" for n in range(11))}, "11 systems are more than 10"),
        ({"model": ""}, "--model is missing"),
        ({"base_url": "localhost:8000"}, "--base_url: localhost:8000 is no http"),
        ({"base_url": "http://me:secret@host/v1"}, "--base_url: holds a user or password"),
        ({"mode": "pairwise"}, '--mode: "pairwise" is not one of robust, faithful'),
        ({"concurrency": 0}, "--concurrency: 0 is not above 0"),
        ({"timeout": float("nan")}, "--timeout: nan"),
        ({"timeout": 0.0}, "--timeout: 0.0"),
        ({"temperature": 3.0}, "--temperature: 3.0"),
        ({"seed": -1}, "--seed: -1"),
        ({"test_data": "no/where"}, "--test_data: no/where does not exist"),
        ({"output_dir": ""}, "--output_dir is missing"),
        ({"output_dir": __file__}, "is a file, must be a folder"),
        ({"raters": 0}, "--raters: 0 is not above 0"),
        ({"raters": 21}, "--raters: 21 is more than 20"),
        ({"sheets": ()}, "the filled sheets are missing"),
        ({"sheets": ("no.csv",)}, "no.csv is no file"),
    ],
)  # fmt: skip
def test_a_flag_that_cannot_be_is_refused(changed, message, tmp_path):
    with pytest.raises(ArgumentFault) as fault:
        checks.judging(flags_of(tmp_path, **changed))
    assert message in str(fault.value) and "secret" not in str(fault.value)


def commands(argv: list[str], capsys, monkeypatch) -> tuple[int, str, str]:
    got = {}

    def one(*words: str, number: int = 1) -> None:
        """The first.

        More of it.
        """
        got.update(words=words, number=number)

    def other(name: str = "") -> None:
        """The second."""
        got.update(name=name)

    monkeypatch.setattr("sys.argv", ["probe.py", *argv])
    code = 0
    try:
        cli.run({"one": one, "other": other})
    except SystemExit as left:
        code = left.code
    out, err = capsys.readouterr()
    return code, out or str(got), err


@pytest.mark.parametrize(
    ("argv", "code", "expected"),
    [
        (["one", "a.csv", "b c.csv", "--number", "2", "007"], 0, "{'words': ('a.csv', 'b c.csv', '007'), 'number': 2}"),
        (["one", "--number=2", "0x1"], 0, "{'words': ('0x1',), 'number': 2}"),
        (["other", "--name", "x"], 0, "{'name': 'x'}"),
        (["other"], 0, "{'name': ''}"),
        ([], 2, "a command is missing (one of one, other)"),
        (["othr"], 2, '"othr" is not a command (did you mean other?)'),
        (["zzz", "--name", "x"], 2, '"zzz" is not a command (one of one, other)'),
        (["--name", "x"], 2, '"--name" is not a command'),
        (["other", "x"], 2, '"x" is not a flag'),
        (["other", "--nam", "x"], 2, "probe.py other: error: unknown flag --nam (did you mean --name?)"),
        (["one", "--number", "x"], 2, '--number: "x" is not a whole number'),
        (["one", "--words", "x"], 2, "unknown flag --words"),
        (["one", "-x"], 2, '"-x" is not a flag'),
        (["--help"], 0, "one        The first."),
        (["one", "--help"], 0, "usage: python probe.py one WORDS ... [--flag value ...]"),
        (["other", "--help"], 0, "--name"),
    ],
)
def test_commands_are_read_as_strictly_as_flags(argv, code, expected, capsys, monkeypatch):
    got, out, err = commands(argv, capsys, monkeypatch)
    assert got == code and expected in (err if code else out)


@pytest.mark.parametrize("command", ["ask", "table", "sheet", "collect", "auto"])
def test_help_answers_in_under_a_second_and_loads_nothing_heavy(command):
    start = time.perf_counter()
    line = [sys.executable, "-X", "importtime", ROOT / "judge.py", command, "--help"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0 and "--output_dir" in done.stdout
    loaded = {row.rpartition("|")[2].strip().partition(".")[0] for row in done.stderr.splitlines()}
    assert not loaded & {"openai", "matplotlib", "torch", "transformers", "sacrebleu", "numpy"}
    assert time.perf_counter() - start < 1.5  # with the cost of -X importtime
