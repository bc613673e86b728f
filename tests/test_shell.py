"""The shell scripts: from where they run, with which python, with which paths."""

import shutil

import pytest
from shells import ANSWERS, CHAIN, MAIN, NAMES, PIPELINES, Tree, flags

import finetune
import generate
from utils import cli

# --- From where, and with which python ---


@pytest.mark.parametrize("cwd, script", [("scripts", "{}.sh"), (".", "scripts/{}.sh"), ("/", "{{root}}/scripts/{}.sh")])
@pytest.mark.parametrize("variables", [{}, {"CDPATH": ".:/"}], ids=["", "CDPATH"])
def test_it_runs_from_any_folder(cwd, script, variables, tree):
    tree.complete()
    path = script.format(CHAIN[1]).format(root=tree.root)
    done = tree.bash(path, cwd=tree.root / cwd, **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert tree.called()[0][:2] == [str(tree.root), "finetune.py"]


@pytest.mark.parametrize(
    "folder", ["two words", "a;b", "$(touch pwned)", "`touch pwned`", "it's", 'a"b', "-n", "*", "梦"]
)
def test_the_repository_may_lie_anywhere(folder, tmp_path):
    (tmp_path / folder).mkdir()
    (tmp_path / "other").mkdir()
    tree = Tree(tmp_path / folder, tmp_path).complete()
    assert tree.run(ANSWERS).returncode == 0
    done = tree.bash(tree.root / "scripts" / f"{CHAIN[3]}.sh", cwd=tmp_path / "other")
    assert (done.returncode, done.stderr) == (0, "")
    assert [call[0] for call in tree.called()] == [str(tree.root)] * 2
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    "part", ["two words", "a;b", "$(touch pwned)", "`touch pwned`", "it's", 'a"b', "*", "a=b", "--", "&"]
)
def test_a_path_arrives_as_one_argument(part, tree):
    tree.complete()
    (tree.root / part).mkdir()
    for kind in ("models", "data", "output"):
        shutil.move(tree.root / kind, tree.root / part / kind)
    folders = {"MODEL_DIR": f"./{part}/models", "DATA_DIR": f"./{part}/data", "OUTPUT_DIR": f"./{part}/output"}
    done = tree.run(CHAIN[1], **folders)
    assert (done.returncode, done.stderr) == (0, "")
    given = flags(tree.called()[0])
    assert given["base_model"] == f"./{part}/models/merge-13b-alpaca"
    assert given["data_path"] == f"./{part}/data/COIG/coig-part1.json"
    assert given["resume_from_checkpoint"] == f"./{part}/output/{CHAIN[0]}"
    assert not list(tree.root.rglob("pwned"))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PIPELINES])
def test_no_script_lets_bash_take_a_path_apart(name, tree):
    tree.complete()
    folders = {"MODEL_DIR": "models", "OUTPUT_DIR": "output", "DATA_DIR": "data", "TEST_INPUT": "test_data"}
    for variable, folder in folders.items():
        shutil.move(tree.root / folder, tree.root / f"{folder} $(touch pwned);*")
        folders[variable] = f"./{folder} $(touch pwned);*"
    done = tree.run(name, **{**folders, "TEST_INPUT": f"{folders['TEST_INPUT']}/01qa.json"})
    assert (done.returncode, done.stderr) == (0, "")
    given = cli.parse(MAIN[tree.called()[0][1]], tree.called()[0][2:])
    assert all(value.startswith(tuple(folders.values())) for value in given.values() if "/" in value)
    assert not list(tree.root.rglob("pwned"))


@pytest.mark.parametrize("folder", ["-models", "--overwrite", "-n"])
def test_a_leading_dash_never_becomes_a_flag(folder, tree):
    tree.complete()
    shutil.move(tree.root / "models", tree.root / folder)
    (tree.root / "-prompts.json").write_text("[]")
    assert tree.run(ANSWERS, MODEL_DIR=folder, TEST_INPUT="-prompts.json").returncode == 0
    (call,) = tree.called()
    values = cli.parse(generate.main, call[2:])
    assert values["base_model"] == f"./{folder}/merge-13b-alpaca"
    assert values["test_input_path"] == "./-prompts.json"


def test_a_value_that_is_a_flag_is_refused_and_not_obeyed(tree):
    tree.complete().run(CHAIN[0], VAL_SET_SIZE="--overwrite")
    with pytest.raises(Exception, match="--val_set_size needs a value"):
        cli.parse(finetune.train, tree.called()[0][2:])


def test_sourcing_env_hides_no_command_and_leaves_path_alone(tree):
    show = "type -a python python3 pip; declare -F | grep python; alias; echo $PATH"
    script = f"before=$({show}); . scripts/env.sh; after=$({show} || true); [[ $before == $after ]] && echo same"
    assert tree.bash("-c", script).stdout == "same\n"


@pytest.mark.parametrize(
    "variables, made, expected",
    [
        ({}, [], "python3"),
        ({}, [".venv/bin/python"], ".venv/bin/python"),
        ({"VIRTUAL_ENV": "/some/venv"}, [".venv/bin/python"], "python"),
        ({"CONDA_PREFIX": "/some/conda"}, [".venv/bin/python"], "python"),
        ({"VIRTUAL_ENV": "", "PYTHON": ""}, [], "python3"),
        ({"VIRTUAL_ENV": "/some/venv", "PYTHON": "/my/python"}, [".venv/bin/python"], "/my/python"),
    ],
)
def test_which_python(variables, made, expected, tree):
    for path in made:
        (tree.root / path).parent.mkdir(parents=True)
        (tree.root / path).touch(mode=0o755)
    done = tree.bash("-c", '. scripts/env.sh; echo "$PYTHON"', **{"PYTHON": None, **variables})
    assert done.stdout == f"{expected}\n"
