"""Write FLAGS.md: every flag of every script, from signatures, the comments behind parameters, and docstrings.

    python scripts/flags.py

Nothing is imported or run: the files are read. Raises an error that names the flags nothing explains.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import cli, files
from utils.errors import DataFault
from utils.flags import explained, shown

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "scripts" / "FLAGS.md"
PLACES = ("*.py", "data/*/split.py", "scripts/*.py", "scripts/bench/*.py")
HEAD = """\
# Every flag of every script

Written by `python scripts/flags.py` from the scripts themselves. `python finetune.py --help` shows those of one.

A flag is `--name value` or `--name=value`, written in full; `--name` alone is True for a bool. A list is `[a,b]` or
`a,b`. Every script also knows `--debug`, which shows the traceback of an error. The bash scripts take their settings
from the environment ([README](README.md#every-environment-variable)); `prepare-data.sh` alone has a flag, `--download`.
"""
Flag = tuple[str, str, str, str]  # name, type, default, what it does


def main() -> None:
    """Write scripts/FLAGS.md anew."""
    files.write_atomic(PAGE, page())
    print(PAGE)


def page() -> str:
    """The text of FLAGS.md. Raises DataFault naming each flag without an explanation."""
    paths = [path for place in PLACES for path in sorted(ROOT.glob(place))]
    tables = {path.relative_to(ROOT).as_posix(): commands(path) for path in paths}
    silent = [
        f"{script} --{name}"
        for script, found in tables.items()
        for flags in found.values()
        for name, *_, text in flags
        if not text
    ]
    if silent:
        raise DataFault(f"no comment behind it and no docstring explains {', '.join(silent)}")
    sections = (section(script, found, tables) for script, found in tables.items() if any(found.values()))
    return "\n".join([HEAD, *(line for lines in sections for line in lines)])


def commands(path: Path) -> dict[str, list[Flag]]:
    """{sub-command, or "": its flags} of a script; nothing where it takes none.

    What a command leaves unexplained is explained by the script's first command that has the same flag.
    """
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    names = {name: functions[function] for name, function in started(tree)}
    texts: dict[str, str] = {}
    found = {}
    for name, function in names.items():
        told = explained("\n".join(source.splitlines()[function.lineno - 1 : function.end_lineno]))
        texts = {flag: texts.get(flag) or text for flag, text in {**texts, **told}.items()}
        found[name] = [(flag, kind, default, told[flag] or texts[flag]) for flag, kind, default in signature(function)]
    return found


def started(tree: ast.Module) -> list[tuple[str, str]]:
    """(sub-command, function) of the file's cli.run(…): one without a sub-command, or those of a dict."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "cli.run")
    given = next((call.args[0] for call in calls), None)
    if isinstance(given, ast.Dict):
        return [(ast.literal_eval(key), ast.unparse(value)) for key, value in zip(given.keys, given.values) if key]
    return [("", ast.unparse(given))] if given else []


def signature(function: ast.FunctionDef) -> Iterator[tuple[str, str, str]]:
    """(name, type, default) of each flag; of `*words` the name in capitals."""
    arguments = function.args
    if arguments.vararg:
        yield arguments.vararg.arg, "words", ""
    pairs = [*zip(arguments.args, arguments.defaults), *zip(arguments.kwonlyargs, arguments.kw_defaults)]
    for argument, default in pairs:
        assert argument.annotation and default, argument.arg
        kind = ast.unparse(argument.annotation)
        infinite = ast.unparse(default) == "float('inf')"
        value = float("inf") if infinite else ast.literal_eval(default)
        yield argument.arg, "list" if kind.startswith("tuple") else kind, "" if value in ("", ()) else shown(value)


def section(script: str, found: dict[str, list[Flag]], tables: dict[str, dict[str, list[Flag]]]) -> Iterator[str]:
    """Titles, and a table a command. Of a BLOOM twin only the flags that are not its twin's."""
    twin = script.replace("_bloom", "")
    yield f"## {script}\n"
    for name, flags in found.items():
        if name:
            yield f"### {script} {name}\n"
        if twin != script:
            flags = [flag for flag in flags if flag not in tables[twin][name]]
            yield f"The flags of {twin}{', but for:' if flags else '.'}\n"
        if flags:
            yield "| flag | type | default | |\n|---|---|---|---|"
            yield from map(row, flags)
            yield ""


def row(flag: Flag) -> str:
    """A flag's line in its table."""
    name, kind, default, text = (part.replace("|", "\\|") for part in flag)
    asked = f"`{name.upper()} …`" if kind == "words" else f"`--{name}`"
    return f"| {asked} | {kind} | {f'`{default}`' if default else ''} | {text} |"


if __name__ == "__main__":
    cli.run(main)
