"""Flags with a form of their own: shares, stop texts, users with passwords, systems with their answers, a free port."""

import json
import math
import os
import socket
from pathlib import Path

from utils.errors import ArgumentFault, EnvironmentFault

MOST_SYSTEMS = 10  # the judge's prompts count them in words


def shares(data_mix: tuple[str, ...], files: int) -> list[float]:
    """--data_mix as the numbers it is, one for each of `files`. Raises ArgumentFault."""
    given = ",".join(data_mix)
    try:
        numbers = [float(share) for share in data_mix]
    except ValueError:
        numbers = [0.0]
    if data_mix and len(data_mix) != files:
        raise ArgumentFault(f"--data_mix: {given} has {len(data_mix)} shares for {files} files of --data_path")
    if not all(0 < number <= 1 for number in numbers):
        raise ArgumentFault(f"--data_mix: {given} must be shares above 0 such as 0.7,0.3")
    if data_mix and not math.isclose(sum(numbers), 1, abs_tol=1e-6):
        raise ArgumentFault(f"--data_mix: {given} sums to {sum(numbers):g}, must sum to 1")
    return numbers


def stop_texts(text: str) -> tuple[str, ...]:
    """--stop as its texts: itself, or the strings of a JSON list. Raises ArgumentFault."""
    if not text.startswith("["):
        return (text,) if text else ()
    try:
        texts = json.loads(text)
    except ValueError:
        texts = None
    if not isinstance(texts, list) or not all(isinstance(one, str) and one for one in texts):
        raise ArgumentFault(f'--stop: {text} is no JSON list of texts such as ["###", "\\n\\n"]')
    return tuple(texts)


def users(auth: str) -> list[tuple[str, str]]:
    """--auth as (name, password) pairs: USER:PASSWORD itself, or the lines of a file. Raises ArgumentFault."""
    if not auth:
        return []
    is_file = os.path.isfile(auth)  # Path's would not take a long text
    try:
        lines = Path(auth).read_text(encoding="utf-8-sig").splitlines() if is_file else [auth]
    except UnicodeDecodeError:
        raise ArgumentFault(f"--auth: {auth} is not UTF-8") from None
    pairs = [(name, word) for name, _, word in (line.strip().partition(":") for line in lines if line.strip())]
    if not pairs or not all(name and word for name, word in pairs):
        where = auth if is_file else "the value"
        raise ArgumentFault(f"--auth: {where} is neither USER:PASSWORD nor a file with a line of it for each user")
    return pairs


def systems(text: str) -> tuple[dict[str, str], list[str]]:
    """--answers as ({system: file}, problems): NAME=FILE,NAME=FILE."""
    if not text:
        return {}, ["--answers is missing: NAME=test.json,NAME=test.json, one for each system"]
    answers: dict[str, str] = {}
    problems = []
    for part in text.split(","):
        name, equals, path = (piece.strip() for piece in part.partition("="))
        if not (name and equals and path):
            problems.append(f'--answers: "{part}" is not NAME=FILE')
        elif set(name) & set('|*<>"\n'):
            problems.append(f"--answers: the name {name} holds one of | * < > and quotes")
        elif name in answers:
            problems.append(f"--answers: {name} is given twice")
        elif not os.path.exists(path):
            problems.append(f"--answers: {path} does not exist")
        answers[name] = path
    if len(answers) > MOST_SYSTEMS:
        problems.append(f"--answers: {len(answers)} systems are more than {MOST_SYSTEMS}")
    return answers, problems


def check_port(name: str, port: int) -> None:
    """Raises EnvironmentFault where nothing can listen at this address."""
    try:
        socket.create_server((name, port), family=socket.AF_INET6 if ":" in name else socket.AF_INET).close()
    except OSError as error:
        number = error.errno or 0  # below 0 it is the resolver's
        reason = os.strerror(number) if number > 0 else "no such name"
        raise EnvironmentFault(f"--server_port: {port} of {name} cannot be had: {reason}") from None
