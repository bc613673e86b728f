"""The HTTP side of the judge: any OpenAI-compatible chat endpoint, asked what is missing, at a bounded pace.

A failed call (time-out, reset, 5xx, 429, a body that is no completion) is sent again after a pause; a reply that gives
no scores is asked for again, a little warmer; both a bounded number of times, then the call is listed as unjudged.
The key comes from OPENAI_API_KEY and is written nowhere.
"""

import asyncio
import email.utils
import hashlib
import os
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import openai
from tqdm import tqdm

from utils import record, verdicts
from utils.errors import DataFault, EnvironmentFault
from utils.journal import Journal
from utils.judging import Call, new_marker, prompt

KEY = "OPENAI_API_KEY"
TRIES = 6  # of one call that fails
REPLIES = 3  # of one call that is answered without scores
PAUSE = 1.0  # seconds before the second try, doubled before each further one
LONGEST_PAUSE = 30.0
LONGEST_WAIT = 600.0  # seconds that a Retry-After may ask for
LOST_IN_A_ROW = 5  # calls without a reply, or prompts refused, with no reply between them, that end the run
WARMER = 0.7  # least temperature of a second and third asking


@dataclass(frozen=True)
class Endpoint:
    """Who is asked. temperature below 0 is left to the server; timeout in seconds, for a whole reply."""

    base_url: str
    model: str
    temperature: float
    timeout: float


@dataclass
class _Run:
    """What the askers of one run share."""

    client: openai.AsyncOpenAI
    endpoint: Endpoint
    journal: Journal
    bar: tqdm
    tokens: int  # of all replies of this judge in the journal, read and written
    not_before: float = 0.0  # time.monotonic() before which nothing is sent: somebody was told to wait
    lost: set[object] = field(default_factory=set)  # what was given up since the last reply
    unjudged: dict[str, str] = field(default_factory=dict)


def ask_missing(
    calls: Sequence[Call], endpoint: Endpoint, output_dir: str, concurrency: int
) -> tuple[dict[str, str], int]:
    """Ask for every verdict that verdicts.jsonl lacks; returns ({call: why} of those that stay unjudged, the tokens
    that this judge's replies have taken so far).

    Raises EnvironmentFault without a key, for a key that is refused, a model that is not there, or a judge that
    cannot be reached; DataFault where the journal holds verdicts of this judge at another temperature.
    """
    client = openai.AsyncOpenAI(api_key=_key(), base_url=endpoint.base_url, max_retries=0)
    with verdicts.open_journal(output_dir) as journal:
        lines = [line for line in verdicts.read(output_dir) if line["judge"] == endpoint.model]
        missing = _missing(calls, lines, endpoint, journal.path)
        judged = len(calls) - len(missing)
        with tqdm(total=len(calls), initial=judged, desc="judging", unit="call", disable=None) as bar:
            run = _Run(client, endpoint, journal, bar, sum(map(_tokens, lines)))
            asyncio.run(_ask_all(run, missing, concurrency))
            return run.unjudged, run.tokens


def _missing(calls: Sequence[Call], lines: Sequence[dict], endpoint: Endpoint, path: Path) -> list[Call]:
    known = {call.key: call for call in calls}
    own = [line for line in lines if verdicts.key_of(line) in known]
    if others := {line["temperature"] for line in own if line.get("attempt") == 1} - {endpoint.temperature}:
        asked = f"{endpoint.model} was asked at --temperature {others.pop():g}, not {endpoint.temperature:g}"
        raise DataFault(f"{path}: {asked}; take that, or another --output_dir")
    done = {key for line in own if verdicts.parse(line, known[key := verdicts.key_of(line)]).scores}
    return [call for call in calls if call.key not in done]


async def _ask_all(run: _Run, missing: Sequence[Call], concurrency: int) -> None:
    waiting = iter(missing)

    async def asker() -> None:
        for call in waiting:
            if problem := await _judge(run, call):
                run.unjudged[call.name] = problem
                run.bar.write(f"{call.name}: unjudged: {problem}")
            run.bar.update()

    run.bar.set_postfix(tokens=f"{run.tokens:,}")
    async with run.client:
        await asyncio.gather(*(asker() for _ in range(concurrency)))


async def _judge(run: _Run, call: Call) -> str:
    """Ask until a reply gives scores; "" or why none did."""
    problem = ""
    for attempt in range(1, REPLIES + 1):
        temperature = run.endpoint.temperature
        if attempt > 1 and temperature >= 0:
            temperature = max(temperature, WARMER)
        marker = new_marker(call)
        text = prompt(call, marker)
        told = await _send(run, call, text, temperature)
        if isinstance(told, str):
            return told
        line = {
            "judge": run.endpoint.model,
            **dict(zip(verdicts.KEY, call.key, strict=True)),
            "order": call.order,
            "attempt": attempt,
            "temperature": temperature,
            "marker": marker,
            "prompt_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "base_url": run.endpoint.base_url,
            **told,
        }
        verdict = verdicts.parse(line, call)
        problem = verdict.problem
        run.journal.append(line | {"scores": verdict.scores, "problem": problem})
        run.tokens += _tokens(line)
        run.bar.set_postfix(tokens=f"{run.tokens:,}", refresh=False)
        if verdict.scores:
            break
    return problem


def _tokens(line: dict) -> int:
    return sum((line.get("tokens") or {}).values())


async def _send(run: _Run, call: Call, text: str, temperature: float) -> dict | str:
    """What _once returns, after as many tries as it takes up to TRIES, or why the call is given up.

    Raises EnvironmentFault where no further call can fare better.
    """
    reason, refused = "", False
    for attempt in range(TRIES):
        if attempt:
            await asyncio.sleep(min(PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.5, 1))
        while (rest := run.not_before - time.monotonic()) > 0:
            await asyncio.sleep(rest)
        try:
            told = await _once(run, text, temperature)
            run.lost.clear()
            return told
        except openai.APIStatusError as error:
            reason = _reason(error)
            _end_where_hopeless(error, reason)
            if error.status_code not in (408, 409, 429) and error.status_code < 500:
                refused = True
                break
            wait = _retry_after(error)
            if wait > LONGEST_WAIT:
                reason = f"{reason}: asks to wait {wait:.0f} s"
                break
            run.not_before = max(run.not_before, time.monotonic() + wait)
        except (openai.APIError, TimeoutError, ValueError) as error:
            reason = _reason(error)
    # A prompt that is refused, too long perhaps, is refused in each of its orders: that counts once.
    run.lost.add((call.item.category, call.item.number) if refused else call.key)
    if len(run.lost) >= LOST_IN_A_ROW:
        raise EnvironmentFault(f"{run.endpoint.base_url}: {LOST_IN_A_ROW} in a row failed, the last with {reason}")
    return reason


async def _once(run: _Run, text: str, temperature: float) -> dict:
    """One HTTP call: model, date, finish_reason, tokens and reply, as they stand in a line of the journal.

    Raises openai.APIError, TimeoutError, or ValueError for a body that is no chat completion.
    """
    warmth = {"temperature": temperature} if temperature >= 0 else {}
    async with asyncio.timeout(run.endpoint.timeout):
        completion = await run.client.chat.completions.create(
            model=run.endpoint.model, messages=[{"role": "user", "content": text}], timeout=None, **warmth
        )
    try:  # the client checks nothing of what servers leave out
        body = completion.to_dict(warnings=False)
        choice, usage = body["choices"][0], body.get("usage") or {}
        reply = choice["message"].get("content") or ""
        tokens = {kind: int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion")}
    except (AttributeError, KeyError, IndexError, TypeError):
        raise ValueError("a body that is no chat completion") from None
    if not isinstance(reply, str):
        raise ValueError("a reply that is no text")
    return {
        "model": body.get("model"),
        "date": record.now(),
        "finish_reason": choice.get("finish_reason"),
        "tokens": tokens,
        "reply": _safe(reply),
    }


def _end_where_hopeless(error: openai.APIStatusError, reason: str) -> None:
    """Raise EnvironmentFault for a refused key, a model or path that is not there, an account without credit."""
    if error.status_code in (401, 403):
        raise EnvironmentFault(f"the judge refuses the key in {KEY} ({reason})") from None
    if error.status_code == 404 or error.code == "insufficient_quota":
        raise EnvironmentFault(f"the judge cannot be asked: {reason}") from None


def _retry_after(error: openai.APIStatusError) -> float:
    """Seconds that the Retry-After header asks for, as a number or a date; 0 without one that can be read."""
    text = error.response.headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(text))
    with suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def _reason(error: Exception) -> str:
    """The error in one short line."""
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return "no reply in time"
    code = f"{error.status_code} " if isinstance(error, openai.APIStatusError) else ""
    message = str(error).removeprefix(f"Error code: {code}- ")
    cause = f" ({error.__cause__})" if isinstance(error, openai.APIConnectionError) and error.__cause__ else ""
    return " ".join(_safe(f"{code}{message}{cause}").split())[:200]


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise EnvironmentFault(f"{KEY} is not set (any word will do for a server that asks for none)")
    if not (key.isascii() and key.isprintable()):
        raise EnvironmentFault(f"{KEY} holds characters that no key has")
    return key


def _safe(text: str) -> str:
    """The text without the key, should a server send it back (a short one is a placeholder, not a secret)."""
    key = _key()
    return text.replace(key, "***") if len(key) >= 12 else text
