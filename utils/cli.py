"""The command line: a function's signature is the list of flags, read strictly, then run by fire.

fire alone turns `--learning_rat 1e-4` into an ignored or a positional value, `--run_name 007` into the
number 7 and `Flase` into a true text. So every token is checked against the signature first; only then
does fire call the function, with parsers that follow the annotations (bool, int, float, str, tuple of str).
"""

import contextlib
import difflib
import errno
import inspect
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from utils import ranks
from utils.errors import ArgumentFault, EnvironmentFault, Fault

# How long (s) a process waits for the first one of its machine to tell an error that both surely have, or may have.
SURELY, MAYBE = 60, 5
_given: frozenset[str] = frozenset()


def given_flags() -> frozenset[str]:
    """Names of the flags that stood on the command line of this process (empty when called as a library)."""
    return _given


def run(
    main: Callable[..., None] | Mapping[str, Callable[..., None]],
    argv: list[str] | None = None,
    several: bool = False,
) -> None:
    """Read argv against main's signature, call main, leave with the exit code of utils.errors.

    main: a function, or {sub-command: function}; then argv begins with the sub-command. several: whether a launcher
    may start it in several processes, of which the first one alone prints.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    script = Path(sys.argv[0]).name
    if isinstance(main, Mapping):
        main, script = _command(main, script, argv), f"{script} {argv.pop(0)}"
    if {"--help", "-h", "help"} & set(argv[:1]) or "--help" in argv:
        print(help_text(main, script))
        sys.exit(0)
    debug = "--debug" in argv  # until the line is read
    try:
        values = parse(main, argv)
        debug = _bool(str(values.pop("debug", "False")))
        if not debug:  # the libraries' notes to their own developers
            warnings.simplefilter("ignore", FutureWarning)
            logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
        if ranks.world_size() > 1 and not several:
            raise ArgumentFault(f"it runs in one process: start it as python {script}, without a launcher")
        with contextlib.nullcontext() if ranks.is_first() else _silence():
            _call(main, values)
    except KeyboardInterrupt:
        _leave(f"{script}: interrupted", 130, debug, ranks.is_first())
    except Fault as fault:
        is_signal = fault.exit_code > 128
        if not is_signal and ranks.local_rank() > 0:
            _give_way(not ranks.have_met() or fault.is_told)
        _leave(f"{script}: {_error()}: {fault}", fault.exit_code, debug, not (is_signal and fault.is_told))
    except OSError as error:
        if error.errno not in _ENVIRONMENT:
            raise
        where = f": {error.filename}" if error.filename else ""
        _leave(f"{script}: {_error()}: {os.strerror(error.errno)}{where}", 5, debug)
    except RuntimeError as error:
        if (why := ranks.loss(error)) is None:
            raise
        _leave(f"{script}: {_error()}: {why}; the same command goes on", EnvironmentFault.exit_code, debug)


_ENVIRONMENT = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENAMETOOLONG,
    errno.EADDRINUSE,
}  # fmt: skip
_DEBUG = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)


def _command(commands: Mapping[str, Callable[..., None]], script: str, argv: list[str]) -> Callable[..., None]:
    """The function that argv asks for by its first word; otherwise leaves, with the list of them."""
    asked = argv[0] if argv else ""
    if asked in ("--help", "-h", "help"):
        print(f"usage: python {script} COMMAND [--flag value ...]    (COMMAND --help lists its flags)\n")
        print(
            "\n".join(f"  {name:<10} {(main.__doc__ or '').partition(chr(10))[0]}" for name, main in commands.items())
        )
        sys.exit(0)
    if asked not in commands:
        close = difflib.get_close_matches(asked, commands, 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(commands)}"
        what = f'"{asked}" is not a command' if asked else "a command is missing"
        _leave(f"{script}: error: {what} ({hint})", ArgumentFault.exit_code, debug=False)
    return commands[asked]


def _error() -> str:
    return "error" if ranks.is_first() else f"error on rank {ranks.rank()}"


def _give_way(surely: bool) -> None:
    """Wait for the machine's first process to tell the error; the launcher then ends this one. If this one ended first,
    the launcher would end the other before it has spoken."""
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(SURELY if surely else MAYBE)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Of a process that is not the first one: what it prints, and its progress bars, the first one shows too."""
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        yield


def _leave(message: str, code: int, debug: bool, tells: bool = True) -> None:
    if debug:
        traceback.print_exc()
    if tells:
        print(message.replace("\n", "\\n"), file=sys.stderr)
    sys.exit(code)


def _call(main: Callable[..., None], values: dict[str, str | list[str]]) -> None:
    import fire
    from fire.decorators import SetParseFn, SetParseFns

    global _given
    _given = frozenset(values)
    parameters = inspect.signature(main).parameters
    words = values.pop(_free_words(parameters) or "", [])
    SetParseFns(**{name: _parser(p.annotation) for name, p in parameters.items()})(main)
    SetParseFn(str)(main)  # what stands without a flag
    fire.Fire(main, command=[*words, *(f"--{name}={value}" for name, value in values.items())])


def _free_words(parameters: Mapping[str, inspect.Parameter]) -> str | None:
    """The name of main's `*words`, the only parameter that takes what stands without a flag."""
    return next((name for name, p in parameters.items() if p.kind is inspect.Parameter.VAR_POSITIONAL), None)


def parse(main: Callable[..., None], argv: list[str]) -> dict[str, str | list[str]]:
    """argv as {flag: raw text}, every problem collected; `*words` as a list. Every script also knows --debug.

    Raises ArgumentFault naming each flag that is unknown, given twice, without a value, or of the wrong type.
    """
    parameters = {**inspect.signature(main).parameters, "debug": _DEBUG}
    words = _free_words(parameters)
    values: dict[str, str | list[str]] = {}
    problems = []
    free: list[str] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if words and not token.startswith("-"):
            free.append(token)
            continue
        name, equals, value = token.removeprefix("--").partition("=")
        if not token.startswith("--") or name not in parameters or name == words:
            problems.append(_unknown(token, name, parameters))
            if tokens and not equals and not tokens[0].startswith("--"):
                tokens.pop(0)
            continue
        if not equals:
            if tokens and not tokens[0].startswith("--"):
                value = tokens.pop(0)
            elif parameters[name].annotation is bool:
                value = "True"
            else:
                problems.append(f"--{name} needs a value")
                continue
        if name in values:
            problems.append(f"--{name} is given twice")
        values[name] = value
        try:
            _parser(parameters[name].annotation)(value)
        except ValueError as error:
            problems.append(f"--{name}: {error}")
    if problems:
        raise ArgumentFault("; ".join(problems))
    return values | {words: free} if words and free else values


def _unknown(token: str, name: str, parameters: dict) -> str:
    if not token.startswith("--"):
        return f'"{token}" is not a flag (flags are --name value)'
    asked = name.replace("-", "_")
    close = [p for p in parameters if p.startswith(asked)] or difflib.get_close_matches(asked, parameters, 1, 0.6)
    hint = f" (did you mean --{close[0]}?)" if close else " (--help lists them)"
    return f"unknown flag --{name}{hint}"


def _parser(annotation: Any) -> Callable[[str], object]:
    parsers: dict[Any, Callable[[str], object]] = {bool: _bool, int: _int, float: _float, str: str}
    return parsers.get(annotation, _names)


def _bool(text: str) -> bool:
    if text not in ("True", "False", "true", "false"):
        raise ValueError(f'"{text}" is neither True nor False')
    return text in ("True", "true")


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'"{text}" is not a whole number') from None


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'"{text}" is not a number') from None


def _names(text: str) -> tuple[str, ...]:
    """`[q_proj,v_proj]`, `['q_proj', "v_proj"]` or `q_proj,v_proj` as a tuple of names."""
    inner = text.strip()
    if inner[:1] in ("[", "(") and inner[-1:] in ("]", ")"):
        inner = inner[1:-1]
    names = tuple(part.strip().strip("'\"") for part in inner.split(",") if part.strip())
    if any(set(name) & set("[](){} '\"") for name in names):
        raise ValueError(f'"{text}" is not a list like [q_proj,v_proj]')
    return names


def help_text(main: Callable[..., None], script: str) -> str:
    """The function's docstring and a line a flag: name, type, default; under it the comment that stands behind it."""
    from utils import flags

    comments = flags.comments(inspect.getsource(main))
    words = _free_words(inspect.signature(main).parameters)
    usage = f"{script} {words.upper()} ..." if words else script
    lines = [inspect.cleandoc(main.__doc__ or ""), "", f"usage: python {usage} [--flag value ...]", ""]
    for name, parameter in inspect.signature(main).parameters.items():
        if name == words:
            continue
        kind = getattr(parameter.annotation, "__name__", str(parameter.annotation))
        lines.append(f"  --{name:<24} {kind:<6} {flags.shown(parameter.default)}")
        lines += [f"      {comments[name]}"] if comments[name] else []
    lines.append(f"  --{'debug':<24} {'bool':<6} False (show the traceback of an error)")
    return "\n".join(lines)
