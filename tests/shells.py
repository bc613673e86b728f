"""The shell scripts under test: their names, a copy of scripts/ to run them in, and a stand-in for python.

The stand-in writes down its arguments and leaves what a real run would leave; nothing is trained.
"""

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import finetune
import finetune_bloom
import generate
import generate_bloom
import merge_lora

ROOT = Path(__file__).resolve().parent.parent
# What a user copied beside them is the user's. Without git: all.
_LISTED = subprocess.run(
    ["git", "ls-files", ":(glob)scripts/*.sh"], cwd=ROOT, capture_output=True, text=True
).stdout.split()
ALL = sorted(map(ROOT.joinpath, _LISTED)) or sorted((ROOT / "scripts").glob("*.sh"))
SOURCED = {"env", "setup"}
SET_UP = {"demo", "test", "prepare-data"}
JUDGED = {"evaluate-2-alpaca-13b"}  # many calls each: test_judge_evaluate.py
NAMES = [path.stem for path in ALL if path.stem not in SOURCED | SET_UP | JUDGED]
PIPELINE = "pipeline-2-alpaca-13b"
PIPELINES = {
    path.stem: re.findall(r"^  ([\w-]+)(?: \\)?$", path.read_text(), re.MULTILINE)
    for path in ALL
    if path.stem.startswith("pipeline-")
}
CHAIN = ["run-2-alpaca-13b-1", "rerun-2-alpaca-13b-2", "rerun-2-alpaca-13b-2-2", "rerun-2-alpaca-13b-3"]
ANSWERS = "save-generate-2-alpaca-13b-3"
MERGES = ["merge-13b-alpaca", "merge-13b-llama", "merge-7b-alpaca", "merge-7b-llama"]
PAGES = [f"generate-2-alpaca-13b-{column}" for column in ("1", "2", "2-2", "3")]
BATCHES = ["save-generate-2-alpaca-13b-2", ANSWERS]
BLOOM = ["run-6-bloom-7b1-1", "rerun-6-bloom-7b1-2"]
STAGE_NAME = re.compile(
    r"(run|rerun|generate|save-generate)-(\d+)-((?:alpaca|llama)-(?:7|13)b|bloom-7b1)-(\d+(?:-\d+)?)"
)
MAIN = {
    "finetune.py": finetune.train,
    "generate.py": generate.main,
    "finetune_bloom.py": finetune_bloom.train,
    "generate_bloom.py": generate_bloom.main,
    "merge_lora.py": merge_lora.main,
}
# The published recipes: the stage before, the data, the validation rows.
RECIPES = {
    "run-1-alpaca-13b-2": (None, "COIG/coig-part1.json", "200"),
    "rerun-1-alpaca-13b-2-2": ("run-1-alpaca-13b-2", "COIG/coig-translate.json", "500"),
    "rerun-1-alpaca-13b-3-1": ("rerun-1-alpaca-13b-2-2", "psyQA/psyqa-5.json", "200"),
    "run-2-alpaca-13b-1": (None, "firefly/firefly-train-0.json", "2000"),
    "rerun-2-alpaca-13b-2": ("run-2-alpaca-13b-1", "COIG/coig-part1.json", "200"),
    "rerun-2-alpaca-13b-2-2": ("rerun-2-alpaca-13b-2", "COIG/coig-translate.json", "500"),
    "rerun-2-alpaca-13b-3": ("rerun-2-alpaca-13b-2-2", "psyQA/psyqa-5.json", "200"),
    "rerun-3-alpaca-13b-3": ("rerun-2-alpaca-13b-3", "firefly/firefly-train-1.json", "2000"),
    "run-4-alpaca-7b-1": (None, "firefly/firefly-train-0.json", "2000"),
    "rerun-5-alpaca-7b-1": ("run-4-alpaca-7b-1", "firefly/firefly-train-1.json", "2000"),
    "run-6-bloom-7b1-1": (None, "belle/belle.json", "2000"),
    "rerun-6-bloom-7b1-2": ("run-6-bloom-7b1-1", "firefly/firefly-train-0.json", "2000"),
}
STAGES = [name for name in NAMES if name.startswith(("run-", "rerun-"))]

# In place of python: writes down its arguments, then fails, waits or leaves behind what a finished run leaves.
STAND_IN = r"""#!/usr/bin/env bash
number=$(ls "$CALLS" | wc -l)
printf '%s\0' "$PWD" "$@" >"$CALLS/$(printf %03d "$number")"
script=$1 output=
for argument in "$@"; do
  [ "${last:-}" != --output_dir ] || output=$argument
  last=$argument
done
stage=$(basename -- "${output:-$script}")
if [ "$stage" = "${FAIL_AT:-}" ]; then exit "$FAIL_CODE"; fi
if [ "$stage" = "${WAIT_AT:-}" ]; then
  [ -z "${SAVES_FIRST:-}" ] || trap 'exit 130' INT
  : >"$CALLS/../waiting"
  for _ in {1..900}; do sleep 0.1; done
fi
if [ "$script" = finetune.py ] || [ "$script" = finetune_bloom.py ]; then
  mkdir -p -- "$output"
  printf weights >"$output/adapter_model.safetensors"
  printf '{\n  "status": "complete"\n}\n' >"$output/run.json"
fi
"""


class Tree:
    """A copy of the scripts in a folder of its own, with the stand-in as PYTHON."""

    def __init__(self, root: Path, outside: Path):
        self.root, self.calls = root, outside / "calls"
        self.python = outside / "bin" / "stand-in"
        self.python.parent.mkdir()
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)
        self.calls.mkdir()
        shutil.copytree(ROOT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "requirements.txt", root)

    def environment(self, **variables: str) -> dict[str, str]:
        """PATH, the stand-in, and nothing of what the tester's own shell has set."""
        basic = {"PATH": os.environ["PATH"], "PYTHON": str(self.python), "CALLS": str(self.calls)}
        return {key: value for key, value in (basic | variables).items() if value is not None}

    def bash(self, *command: str | Path, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", *command], cwd=cwd or self.root, env=self.environment(**variables), capture_output=True, text=True
        )

    def run(self, name: str, **variables: str) -> subprocess.CompletedProcess:
        return self.bash(f"scripts/{name}.sh", **variables)

    def called(self) -> list[list[str]]:
        """The arguments of every call so far, in order, the folder it was made in first."""
        return [path.read_text().split("\0")[:-1] for path in sorted(self.calls.iterdir())]

    def scripts(self) -> list[str]:
        """The stage, or else the script, of every call so far."""
        return [Path(flags(call).get("output_dir", call[1])).name for call in self.called()]

    def forget(self) -> None:
        for path in self.calls.iterdir():
            path.unlink()

    def model(self, name: str, folder: str = "models") -> None:
        (self.root / folder / name).mkdir(parents=True, exist_ok=True)
        (self.root / folder / name / "config.json").write_text("{}")

    def data(self, folder: str = "data") -> None:
        for _, path, _ in RECIPES.values():
            (self.root / folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / folder / path).write_text("[]")

    def stage(self, name: str, status: str | None = "complete", weights: str = "weights") -> Path:
        folder = self.root / "output" / name
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_text(weights)
        if status:
            (folder / "run.json").write_text(f'{{\n  "kind": "finetune",\n  "status": "{status}"\n}}\n')
        return folder

    def ready(self) -> "Tree":
        """Everything there that any script asks for, but no stage."""
        for name in ("llama-13b", "llama-7b", "merge-13b-alpaca", "merge-7b-alpaca", "bloom-7b1"):
            self.model(name)
        self.data()
        (self.root / "test_data").mkdir()
        (self.root / "test_data" / "01qa.json").write_text("[]")
        return self

    def complete(self) -> "Tree":
        """Everything there that any script asks for."""
        self.ready()
        for name in STAGES:
            self.stage(name)
        return self


def flags(call: list[str]) -> dict[str, str]:
    """The flags of a call's arguments (folder, script, --flag, value, ...)."""
    return {name.removeprefix("--"): value for name, value in zip(call[2::2], call[3::2])}


def base_of(stage: str) -> str:
    """The folder under MODEL_DIR that a stage of this name starts from."""
    kind, size = STAGE_NAME.fullmatch(stage)[3].split("-")
    return f"bloom-{size}" if kind == "bloom" else f"merge-{size}-{kind}"


def listing(folder: Path) -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def commands(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(script, flag names) of every command a shell script has for PYTHON; a variable in the script's path is `*`."""
    text = path.read_text().replace("\\\n", " ")
    for line in re.findall(r'^\s*(?:"\$PYTHON"|launch) "?([\w./$-]+\.py)"?(.*)$', text, re.MULTILINE):
        yield re.sub(r"\$\w+", "*", line[0]), re.findall(r"(?<=\s)--([\w-]+)", line[1])


def signature(path: Path) -> list[str]:
    """The flags of a Python script: the arguments of the function, or the commands, that it hands to cli.run."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    (entry,) = re.findall(r"^    cli\.run\((.+)\)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    wanted = {node.id for node in ast.walk(ast.parse(entry)) if isinstance(node, ast.Name)}
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    return [argument.arg for function in functions for argument in (*function.args.args, *function.args.kwonlyargs)]
