"""The house, held by reading the imports: which room may use which, and how large a room may grow.

    python -m pytest tests/test_architecture.py

The table says what each room imports, no less and no more; the library's page says the same to its readers.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP = sorted(ROOT.glob("*.py"))
UTILS = [path for path in sorted((ROOT / "utils").glob("*.py")) if path.name != "__init__.py"]
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
SPLITS = sorted((ROOT / "data").glob("*/split.py"))
DATA = [*sorted((ROOT / "data").glob("*.py")), *SPLITS]
PRODUCT = [*TOP, *UTILS, *SCRIPTS, *DATA]

# room: (other rooms it imports, libraries it imports); errors, files and the standard library are for all of them.
TABLE = {
    "errors": ("", ""),
    "files": ("", ""),
    "strict_json": ("", ""),
    "hub": ("", "huggingface_hub"),
    "prompter": ("", ""),
    "rows": ("strict_json", ""),
    "encode": ("prompter", ""),
    "cache": ("", ""),
    "parallel": ("", ""),
    "dataset": ("cache parallel rows encode prompter", "datasets numpy pyarrow tqdm"),
    "preview": ("memory plots rows encode", "datasets numpy tqdm"),
    "memory": ("fast ranks runtime", "datasets numpy psutil torch"),
    "plots": ("", "matplotlib numpy"),
    "checks": ("hub prompter ranks rows values", ""),
    "values": ("", ""),
    "cli": ("flags ranks", "fire"),
    "record": ("prompter ranks", ""),
    "batching": ("encode", "torch"),
    "ranks": ("", ""),
    "runtime": ("ranks", "accelerate psutil torch"),
    "models": ("fast ranks runtime sharding vocabulary weights", "torch transformers peft bitsandbytes"),
    "weights": ("", "huggingface_hub torch safetensors"),
    "lora": ("weights", "torch"),
    "adapters": ("record checkpoint lora weights", "torch peft transformers"),
    "checkpoint": ("record", ""),
    "sharding": ("ranks", "torch"),
    "hooks": ("ranks runtime", "tqdm transformers"),
    "neftune": ("", "torch"),
    "training": (
        "fast ranks runtime sharding batching adapters checkpoint hooks neftune encode",
        "torch transformers safetensors tqdm",
    ),
    "forgetting": ("dataset record prompter runtime", "datasets"),
    "fast": ("", "torch peft transformers liger_kernel"),
    "merged": ("record", ""),
    "planning": ("lora weights vocabulary", "torch"),
    "merge": ("planning lora weights vocabulary proof", "torch tqdm"),
    "vocabulary": ("weights", "sentencepiece"),
    "proof": ("lora weights encode prompter runtime", "numpy torch"),
    "callbacks": ("", "torch transformers"),
    "decoding": ("", "torch transformers"),
    "packing": ("", "torch"),
    "generation": ("packing callbacks decoding prompter encode", "torch transformers"),
    "journal": ("", ""),
    "tuned": ("hub prompter record", ""),
    "answers": ("checkpoint hub journal record rows tuned weights", ""),
    "batch": ("answers encode generation prompter ranks record rows runtime", "torch tqdm transformers"),
    "chat": ("generation rows", ""),
    "web": ("", "gradio"),
    "gate": ("", "starlette"),
    "judging": ("replies rows strict_json", ""),
    "replies": ("", ""),
    "verdicts": ("journal judging replies", ""),
    "ask": ("journal judging record verdicts", "openai tqdm"),
    "stats": ("", ""),
    "scores": ("judging stats verdicts", ""),
    "references": ("judging scores", "sacrebleu"),
    "sheets": ("checks judging scores stats", ""),
    "tables": ("judging scores verdicts", ""),
    "flags": ("", ""),
}
SHARED = {"errors", "files"}
LIGHT = (
    "prompter", "ranks", "values", "journal", "tuned", "rows", "checks", "record", "merged", "judging", "cli",
    "replies", "verdicts", "scores", "stats", "tables",
)  # fmt: skip
HEAVY = {"torch", "transformers", "peft", "gradio", "datasets", "accelerate", "bitsandbytes"}
ONLY_IN = {
    "gradio": {"utils.web"},
    "bitsandbytes": {"utils.models"},
    "peft": {"utils.models", "utils.adapters", "utils.fast"},
    "fire": {"utils.cli"},
    "openai": {"utils.ask"},
    "sacrebleu": {"utils.references"},
}
# What may happen while a module is imported, besides definitions.
AT_IMPORT = {
    "utils.models": {"transformers_logging.set_verbosity_error()"},
    "utils.plots": {"matplotlib.use('Agg')"},
    "utils.web": {
        "for variable in [name for name in os.environ if name.startswith('GRADIO_')]:\n    del os.environ[variable]"
    },
}
# Files below the root that are started by themselves may make it importable.
SEES_THE_ROOT = re.compile(r"sys\.path\.insert\(0, str\(Path\(__file__\)\.resolve\(\)\.parent(\.parent|s\[[12]\])\)\)")


def name(path: Path) -> str:
    """The module's dotted name, as an import would write it."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


NAMES = {name(path): path for path in PRODUCT}
TOP_NAMES = {name(path) for path in TOP}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path, at_once: bool = False) -> frozenset[str]:
    """Modules a file imports, anywhere in it or (at_once) at its top: ours as utils.rows, libraries by first part."""
    found = set()
    for node in tree(path).body if at_once else ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & set(NAMES)) or {node.module}
    return frozenset(module if module in NAMES else module.partition(".")[0] for module in found)


def reached(module: str, at_once: bool = False) -> set[str]:
    """All that a module imports, and what that imports, and so on."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        for module in imports(NAMES[waiting.pop()], at_once) - seen:
            seen.add(module)
            if module in NAMES:
                waiting.append(module)
    return seen


def libraries(modules: set[str] | frozenset[str]) -> set[str]:
    """The third-party packages among modules."""
    return {module for module in modules if module not in NAMES and module not in sys.stdlib_module_names}


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


each = pytest.mark.parametrize("path", PRODUCT, ids=name)


def test_the_files_are_found():
    assert {"finetune", "generate", "merge_lora"} <= TOP_NAMES
    assert len(UTILS) >= 20 and len(SPLITS) >= 3


@pytest.mark.parametrize("path", UTILS, ids=lambda path: path.stem)
def test_a_room_imports_what_the_table_says(path):
    assert path.stem in TABLE, "a new room: give it its line in the table"
    named_rooms, named_libraries = (set(column.split()) for column in TABLE[path.stem])
    used = imports(path)
    assert {module.removeprefix("utils.") for module in used & set(NAMES)} - SHARED == named_rooms
    assert libraries(used) == named_libraries


def test_the_table_has_no_room_that_is_gone():
    assert TABLE.keys() == {path.stem for path in UTILS}


def test_the_librarys_page_says_what_each_room_builds_on():
    page = (ROOT / "utils/README.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| `(\w+)\.py` \| .* \| ([^|]*) \|$", page, re.MULTILINE))
    for room, (named_rooms, named_libraries) in TABLE.items():
        builds_on = sorted(named_rooms.split()) + sorted(named_libraries.split())
        assert said[room] == (", ".join(builds_on) or "–"), room


def test_law_1_utils_import_no_script_and_scripts_no_script():
    inner = {module for module in NAMES if not module.startswith("utils.")}
    for path in UTILS:
        assert not imports(path) & inner, path
    for path in [*TOP, *SCRIPTS]:
        assert not imports(path) & inner, path


@each
def test_law_1_product_code_never_imports_tests(path):
    test_modules = {"tests", "conftest", "pytest", *(test.stem for test in (ROOT / "tests").glob("*.py"))}
    assert not imports(path) & test_modules


@pytest.mark.parametrize("module", [f"utils.{room}" for room in LIGHT])
def test_law_2_light_rooms_reach_nothing_heavy(module):
    assert not reached(module) & HEAVY


@pytest.mark.parametrize("path", [*TOP, *SPLITS], ids=name)
def test_law_2_a_script_loads_nothing_heavy_before_its_flags_are_read(path):
    """What stands at the top of a script is what --help has to wait for."""
    assert not reached(name(path), at_once=True) & HEAVY


@pytest.mark.parametrize("library", ONLY_IN)
def test_law_3_a_library_has_its_rooms(library):
    using = {module for module, path in NAMES.items() if library in imports(path)}
    assert {module for module in using if not module.startswith("scripts.bench.")} <= ONLY_IN[library]


def test_law_3_quantisation_is_named_in_models_only():
    naming = {path.stem for path in UTILS if "BitsAndBytesConfig" in path.read_text(encoding="utf-8")}
    assert naming <= {"models"}


def test_law_4_training_generation_and_merge_are_strangers():
    assert "utils.generation" not in reached("utils.training")
    assert "utils.training" not in reached("utils.generation")
    assert not {"utils.training", "utils.generation"} & reached("utils.merge")


def test_law_4_the_page_knows_nothing_of_the_library():
    assert not {module for module in imports(NAMES["utils.web"]) if module.startswith("utils")}


@pytest.mark.parametrize("path", SPLITS, ids=name)
def test_law_5_a_converter_stands_alone_with_its_paths_as_flags(path):
    assert not reached(name(path)) & HEAVY
    rooms = {module for module in imports(path) if module.startswith("utils.")}
    assert rooms <= {"utils.cli", "utils.errors", "utils.strict_json"}
    (main,) = (function for function in functions(path) if function.name == "main")
    assert [argument.arg for argument in main.args.args][:2] == ["input", "output_dir"]


@each
def test_law_6_importing_only_defines(path):
    definitions = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    rest = [node for node in tree(path).body[1:] if not isinstance(node, definitions | ast.Assign | ast.AnnAssign)]
    started = [node for node in rest if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"]
    effects = {ast.unparse(node) for node in rest if node not in started}
    if path.parent not in (ROOT, ROOT / "utils"):
        effects = {effect for effect in effects if not SEES_THE_ROOT.fullmatch(effect)}
    assert effects <= AT_IMPORT.get(name(path), set())


def test_law_6_importing_the_scripts_prints_and_moves_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(sorted(TOP_NAMES))}"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, "--nonsense"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_law_7_one_prompter_and_one_encoder():
    for path in PRODUCT:
        calls = {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
        if path.stem != "encode":
            assert not calls & {"tokenizer", "tokenizer.encode", "tokenizer.apply_chat_template", "self.tokenizer"}, (
                path
            )
        if path.stem != "prompter":
            assert "TEMPLATE_DIR" not in path.read_text(encoding="utf-8"), path


@each
def test_a_file_has_at_most_350_lines_and_says_what_it_is_for(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
    assert ast.get_docstring(tree(path))


@each
def test_a_function_has_at_most_80_lines(path):
    """The signature of a script is its command line: of its function, the body alone counts."""
    for function in functions(path):
        first = function.body[0].lineno if path in TOP else function.lineno
        assert function.end_lineno - first + 1 <= 80, function.name


@each
def test_a_public_function_or_class_has_a_docstring(path):
    defined = [
        node for node in tree(path).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    assert not [node.name for node in defined if not node.name.startswith("_") and not ast.get_docstring(node)]


@pytest.mark.parametrize("path", TOP, ids=name)
def test_a_script_shadows_no_library(path):
    assert path.stem not in sys.stdlib_module_names | packages_distributions().keys() | {"evaluate"}
