"""What the flags of a command line mean, from the source of the function whose signature they are.

A flag is explained where it is defined: by the comment behind the parameter, or by the docstring. --help shows both;
scripts/flags.py writes them into scripts/FLAGS.md.
"""

import ast
import re
import textwrap

_TOLD = re.compile(r"(?:^|(?<=[.] ))((?:--)?[a-z]\w*(?:, (?:--)?[a-z]\w*)*): ", re.MULTILINE)


def explained(source: str) -> dict[str, str]:
    """{flag: what it does}, "" where nothing says so.

    The comment behind the parameter comes first; then what the docstring says behind `flag:` or `flag, other:`, where
    this begins a line or a sentence, up to the next one or an empty line.
    """
    found = comments(source)
    for paragraph in (ast.get_docstring(_function(source)) or "").split("\n\n"):
        _, *pieces = _TOLD.split(paragraph)
        for names, text in zip(pieces[::2], pieces[1::2]):
            for name in found.keys() & set(re.findall(r"\w+", names)):
                found[name] = "; ".join(filter(None, [found[name], " ".join(text.split()).removesuffix(".")]))
    return found


def comments(source: str) -> dict[str, str]:
    """{flag: the comment behind its parameter}, "" where there is none."""
    lines, arguments = source.splitlines(), _function(source).args
    every = [*arguments.args, *([arguments.vararg] if arguments.vararg else []), *arguments.kwonlyargs]
    return {argument.arg: lines[argument.lineno - 1].partition(",  # ")[2] for argument in every}


def shown(default: object) -> str:
    """A flag's default as one would type it."""
    return "[" + ",".join(default) + "]" if isinstance(default, tuple) else repr(default)


def _function(source: str) -> ast.FunctionDef:
    (function,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(function, ast.FunctionDef)
    return function
