"""One's own field: the ten lines of the README, run as they stand there, on a tiny model and a hundred rows.

python -m pytest tests/test_own_field.py
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_rows
from shells import ALL

import finetune
import generate
from utils import cli, record

ROOT = Path(__file__).resolve().parent.parent
PARENT, MINE = "rerun-2-alpaca-13b-3", "rerun-2-alpaca-13b-4"
WALK = """\
python finetune.py --dry_run --base_model models/merge-13b-alpaca --data_path data/mine/rows.json \\
  --val_set_size 10 --batch_size 16 --micro_batch_size 8 --cutoff_len 512 --train_on_inputs False
for verb in rerun generate save-generate; do
  sed -e 's/^# Experiment .*/# Experiment 2, stage 4: goes on with my own field./' \\
    -e 's/13b-3/13b-4/; s/13b-2-2/13b-3/; s|psyQA/psyqa-5|mine/rows|; s/convert .* with .*"/put your rows there"/' \\
    -e 's/VAL_SET_SIZE:-200/VAL_SET_SIZE:-10/; s/{BATCH_SIZE:-256/{BATCH_SIZE:-16/' \\
    scripts/$verb-2-alpaca-13b-3.sh >scripts/$verb-2-alpaca-13b-4.sh
done
bash scripts/rerun-2-alpaca-13b-4.sh
bash scripts/generate-2-alpaca-13b-4.sh
"""
# A hundred rows of a field that nobody else has: the opening hours of a village's shops.
SHOPS = ("面馆", "书店", "药房", "花店", "茶铺", "米行", "布庄", "鱼档", "菜摊", "豆腐坊")
DAYS = ("周一", "周二", "周三", "周四", "周五", "周六", "周日", "元旦", "春节", "中秋")
ROWS = [
    {"instruction": f"{shop}{day}几点开门？", "input": "", "output": f"{day}{6 + (shops + days) % 5}点。"}
    for shops, shop in enumerate(SHOPS)
    for days, day in enumerate(DAYS)
]


@pytest.fixture(scope="module")
def place(base, tmp_path_factory) -> Path:
    """A copy of the repository with a hot-start model, a complete third stage, and a hundred rows; nothing else."""
    root = tmp_path_factory.mktemp("own") / "repository"
    shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__", "bench"))
    for name in ("finetune.py", "generate.py", "utils", "templates"):
        (root / name).symlink_to(ROOT / name)
    (root / "models").mkdir()
    (root / "models/merge-13b-alpaca").symlink_to(base)
    (root / "data/mine").mkdir(parents=True)
    finetune.train(
        base_model=str(root / "models/merge-13b-alpaca"),
        data_path=write_rows(root / "data/third.json", ROWS[:4]),
        output_dir=str(root / "output" / PARENT),
        batch_size=2,
        micro_batch_size=2,
        num_epochs=1,
        val_set_size=2,
        train_on_inputs=False,
        load_8bit=False,
    )
    write_rows(root / "data/mine/rows.json", ROWS)
    return root


def bash(place: Path, text: str, **variables: str) -> subprocess.CompletedProcess:
    """Commands of the walk, in the repository's folder, with `python` being this one."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    tiny = {"LOAD_8BIT": "False", "NUM_EPOCHS": "1", "LEARNING_RATE": "1e-2", "MAX_NEW_TOKENS": "8"}
    environment = {**os.environ, "PATH": path, "PYTHON": "python", **tiny, **variables}
    done = subprocess.run(["bash", "-e", "-c", text], cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_the_ten_lines_make_a_stage_of_ones_own(place, monkeypatch):
    """All but the page, which would wait for a reader: its command is told, and the same model answers a file."""
    looking, copying, training, page = re.fullmatch(
        r"(python .*?)^(for .*?^done\n)(bash .*?)^(bash .*)", WALK, re.DOTALL | re.MULTILINE
    ).groups()
    seen = bash(place, looking).stdout
    assert "100 rows" in seen and not (place / "output" / MINE).exists()
    bash(place, copying)
    assert {path.name for path in (place / "scripts").glob("*-13b-4.sh")} == {
        f"{verb}-2-alpaca-13b-4.sh" for verb in ("rerun", "generate", "save-generate")
    }
    bash(place, training)
    run = record.read(place / "output" / MINE)
    assert run["status"] == "complete"
    assert run["parent"]["path"] == str((place / "output" / PARENT).resolve())
    assert [item["path"] for item in run["data"]] == [str((place / "data/mine/rows.json").resolve())]
    assert (run["rows"]["training"]["rows"], run["rows"]["validation"]["rows"]) == (90, 10)
    assert run["settings"]["batch_size"] == 16 and run["steps"] == 6
    assert run["losses"]["best"] < run["losses"]["start"]
    assert [item["stage"] for item in run["held_out"]] == [PARENT]

    told = bash(place, page, PYTHON="echo").stdout
    assert f"--lora_weights ./output/{MINE} " in told and "--is_ui True" in told
    prompts = write_rows(place / "mine.json", [ROWS[0]["instruction"], "法国的首都是哪里？"])
    told = bash(place, "bash scripts/save-generate-2-alpaca-13b-4.sh", PYTHON="echo", TEST_INPUT=prompts).stdout
    monkeypatch.chdir(place)
    cli.run(generate.main, told.split()[1:])
    answers = json.loads((place / "output" / MINE / "test.json").read_text(encoding="utf-8"))
    assert [row["instruction"] for row in answers] == json.loads(Path(prompts).read_text(encoding="utf-8"))
    assert all(row["tokens"] > 0 for row in answers)


def test_seven_lines_of_the_stage_change():
    """What a reader who copies by hand has to touch: the comment, the data and the parent (twice each), two sizes."""
    sed = re.search(r"sed .*?(?=scripts/)", WALK, re.DOTALL).group()
    copied = subprocess.run(
        ["bash", "-c", f"{sed} scripts/{PARENT}.sh"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    before = (ROOT / "scripts" / f"{PARENT}.sh").read_text(encoding="utf-8").splitlines()
    changed = [new for old, new in zip(before, copied, strict=True) if new != old]
    assert changed == [
        "# Experiment 2, stage 4: goes on with my own field.",
        'need_data "$DATA_DIR/mine/rows.json" "put your rows there"',
        "need_stage rerun-2-alpaca-13b-3",
        '  --data_path "$DATA_DIR/mine/rows.json" \\',
        '  --resume_from_checkpoint "$OUTPUT_DIR/rerun-2-alpaca-13b-3" \\',
        '  --batch_size "${BATCH_SIZE:-16}" \\',
        '  --val_set_size "${VAL_SET_SIZE:-10}" \\',
    ]


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
def test_the_readmes_show_these_very_lines(readme):
    assert WALK.count("\n") == 10
    assert f"```\n{WALK}```" in (ROOT / readme).read_text(encoding="utf-8")


def test_the_stage_is_not_shipped():
    assert not [path for path in ALL if path.stem.endswith("-2-alpaca-13b-4")]
