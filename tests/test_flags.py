"""scripts/FLAGS.md is what scripts/flags.py writes, and every flag is explained where it is defined.

python -m pytest tests/test_flags.py
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import generate
from utils import cli, flags

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "scripts/FLAGS.md").read_text(encoding="utf-8")


def write_page(root: Path) -> subprocess.CompletedProcess:
    """scripts/flags.py of a copy of the scripts under `root`."""
    for place in ("*.py", "utils/*.py", "data/*/split.py", "scripts/*.py", "scripts/bench/*.py"):
        for path in ROOT.glob(place):
            copy = root / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return subprocess.run([sys.executable, root / "scripts/flags.py"], capture_output=True, text=True)


def test_the_page_is_what_the_scripts_say(tmp_path):
    done = write_page(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "scripts/FLAGS.md").read_text(encoding="utf-8") == PAGE, "run python scripts/flags.py"


def test_every_script_that_has_a_command_line_stands_on_the_page():
    scripts = [path for place in ("*.py", "data/**/*.py", "scripts/**/*.py") for path in ROOT.glob(place)]
    started = {path.relative_to(ROOT).as_posix() for path in scripts if "    cli.run(" in path.read_text("utf-8")}
    titles = set(re.findall(r"^## (.+)$", PAGE, re.MULTILINE))
    assert started - titles == {"scripts/flags.py"}  # it has no flags
    assert titles <= started


@pytest.mark.parametrize(
    "line",
    [
        "| `--learning_rate` | float | `0.0003` | its peak, behind the warm-up; it falls to 0 |",
        "| `--lora_target_modules` | list | `[q_proj,v_proj]` | the linear layers that get an adapter, by name |",
        "| `--timeout` | float | `120.0` | seconds for one reply |",
        "| `SHEETS …` | words |  | the filled CSV files |",
    ],
)
def test_a_line_of_the_page(line):
    assert f"\n{line}\n" in PAGE


def test_words_of_a_comment_and_of_the_docstring():
    source = '''
    def main(
        a: str = "x,  y",  # the first
        bc: int = 1,
        # a title, which explains nothing
        d: int = 2,
        *words: str,  # what is left
        e: str = "",
    ) -> None:
        """Do it.

        Not told: neither is this. bc: the second,
        on two lines. --d, e: both. other: is no flag.
        a: again.

        f and more.
        """
    '''
    told = {"a": "the first; again", "bc": "the second, on two lines", "d": "both", "e": "both"}
    assert flags.explained(source) == told | {"words": "what is left"}


def test_help_shows_the_comment_under_its_flag():
    shown = cli.help_text(generate.main, "generate.py")
    assert re.search(r"  --num_beams +int +1\n      above 1 searches \(with temperature 0\)\n", shown)
    assert re.search(r"  --temperature +float +0\.0\n  --top_p ", shown)  # the docstring tells of it


def test_a_flag_that_nothing_explains_is_named(tmp_path):
    write_page(tmp_path)
    merge = tmp_path / "merge_lora.py"
    dtype = 'dtype: str = "auto",'
    merge.write_text(merge.read_text("utf-8").replace(dtype, f"{dtype}\n    new: int = 1,"))
    done = subprocess.run([sys.executable, tmp_path / "scripts/flags.py"], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr == "flags.py: error: no comment behind it and no docstring explains merge_lora.py --new\n"
    assert (tmp_path / "scripts/FLAGS.md").read_text(encoding="utf-8") == PAGE
