"""A script and its BLOOM twin: the same flags, defaults and steps, but for the differences that stand here by name.

python -m pytest tests/test_parity.py
"""

import ast
import difflib
import inspect
import re
from pathlib import Path

import pytest

import finetune
import finetune_bloom
import generate
import generate_bloom

ROOT = Path(__file__).resolve().parent.parent
TWINS = {"finetune": (finetune.train, finetune_bloom.train), "generate": (generate.main, generate_bloom.main)}
# flag: (default of the script, default of its twin). All other flags have the same name, place, type and default.
DEFAULTS = {
    "finetune": {
        "output_dir": ("./lora-alpaca", "./lora-bloom"),
        "lora_target_modules": (("q_proj", "v_proj"), ("query_key_value",)),
    },
    "generate": {},
}
# Lines of the function's own help that differ: BLOOM's rows are padded, its vocabulary is the largest of all.
HELP = {
    "finetune": {
        "- fast: rows without padding, fused LoRA products, the loss in parts; False is the plain path, which it must "
        "equal.",
        "+ fast: fused LoRA products, the loss in parts of the 250,880 logits; False is the plain path, which it must "
        "equal.",
    },
    "generate": set(),
}
# What the body of a script decides; whatever else depends on something is decided in utils/, for both.
DECISIONS = {
    "finetune": {"start.complete", "dry_run"},
    "generate": {"is_ui", "target", "target and target.is_complete"},
}
each = pytest.mark.parametrize("script", TWINS)


def source(name: str) -> str:
    return (ROOT / f"{name}.py").read_text(encoding="utf-8")


def function(name: str) -> ast.FunctionDef:
    """The function that is the command line; its docstring taken away."""
    (found,) = (node for node in ast.parse(source(name)).body if isinstance(node, ast.FunctionDef) and node.args.args)
    assert ast.get_docstring(found)
    del found.body[0]
    return found


@each
def test_flags_and_defaults_are_the_same_but_for_those_named_here(script):
    ours, theirs = (inspect.signature(main).parameters for main in TWINS[script])
    assert list(ours) == list(theirs)
    assert {name: ours[name].annotation for name in ours} == {name: theirs[name].annotation for name in theirs}
    pairs = {name: (ours[name].default, theirs[name].default) for name in ours}
    assert {name: pair for name, pair in pairs.items() if pair[0] != pair[1]} == DEFAULTS[script]


@each
def test_the_steps_are_the_same_statement_by_statement(script):
    ours, theirs = ([ast.unparse(node) for node in function(name).body] for name in (script, f"{script}_bloom"))
    assert ours == theirs


@each
def test_the_comments_inside_are_the_same(script):
    ours, theirs = (re.findall(r"^ +# .*$", source(name), re.MULTILINE) for name in (script, f"{script}_bloom"))
    assert ours == theirs and len(ours) > 3


@each
def test_the_help_is_the_same_but_for_the_lines_named_here(script):
    texts = [inspect.cleandoc(main.__doc__).splitlines() for main in TWINS[script]]
    changed = [line for line in difflib.ndiff(*texts) if line[0] in "+-"]
    assert set(changed) == HELP[script]


@each
def test_each_file_can_be_read_alone(script):
    """Nothing beside the one function: no helper that would have to stand in both."""
    for name in (script, f"{script}_bloom"):
        body = ast.parse(source(name)).body
        assert [type(node).__name__ for node in body] == ["Expr", "ImportFrom", "FunctionDef", "If"]


@pytest.mark.parametrize("script", DECISIONS)
def test_no_branch_and_no_formula_stands_in_both(script):
    nodes = list(ast.walk(function(script)))
    asked = {ast.unparse(node.test) for node in nodes if isinstance(node, ast.If | ast.IfExp)}
    assert asked == DECISIONS[script]
    assert not [ast.unparse(node) for node in nodes if isinstance(node, ast.BinOp | ast.Compare | ast.While | ast.For)]


def test_no_family_is_named_in_a_body():
    for name in (name for script in TWINS for name in (script, f"{script}_bloom")):
        body = "\n".join(map(ast.unparse, function(name).body))
        assert not re.search("llama|bloom", body, re.IGNORECASE), name
