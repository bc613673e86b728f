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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import openai
from openai.types.chat import ChatCompletion
from tqdm import tqdm

from utils import record
from utils.errors import DataFault, EnvironmentFault
from utils.judging import Call, new_marker, prompt
from utils.verdicts import Journal, key_of, parse

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
class _State:
    """What the askers of one run share."""

    client: openai.AsyncOpenAI
    endpoint: Endpoint
    journal: Journal
    bar: tqdm
    tokens: int = 0
    not_before: float = 0.0  # time.monotonic() before which nothing is sent: somebody was told to wait
    lost: set[object] = field(default_factory=set)  # what was given up since the last reply
    unjudged: dict[str, str] = field(default_factory=dict)


class _GivenUp(Exception):
    """A call that stays without a reply."""


def ask_missing(calls: Sequence[Call], endpoint: Endpoint, journal: Journal, concurrency: int) -> dict[str, str]:
    """Ask for every verdict that the journal lacks; returns {call: why} of those that stay unjudged.

    Raises EnvironmentFault without a key, for a key that is refused, a model that is not there, or a judge that
    cannot be reached; DataFault where the journal holds verdicts of this judge at another temperature.
    """
    _key()
    known = {call.key: call for call in calls}
    own = [line for line in journal.lines if line["judge"] == endpoint.model and key_of(line) in known]
    if others := {line["temperature"] for line in own if line.get("attempt") == 1} - {endpoint.temperature}:
        asked = f"{endpoint.model} was asked at --temperature {others.pop():g}, not {endpoint.temperature:g}"
        raise DataFault(f"{journal.path}: {asked}; take that, or another --output_dir")
    done = {key_of(line) for line in own if parse(line, known[key_of(line)]).scores}
    missing = [call for call in calls if call.key not in done]
    with tqdm(total=len(calls), initial=len(calls) - len(missing), desc="judging", unit="call", disable=None) as bar:
        return asyncio.run(_ask_all(missing, endpoint, journal, concurrency, bar, sum(map(_tokens_of, own))))


def _tokens_of(line: dict) -> int:
    return sum((line.get("tokens") or {}).values())


async def _ask_all(
    missing: list[Call], endpoint: Endpoint, journal: Journal, concurrency: int, bar: tqdm, tokens: int
) -> dict[str, str]:
    async with openai.AsyncOpenAI(api_key=_key(), base_url=endpoint.base_url, max_retries=0) as client:
        state = _State(client, endpoint, journal, bar, tokens)
        bar.set_postfix(tokens=f"{tokens:,}")
        waiting = iter(missing)
        await asyncio.gather(*(_asker(state, waiting) for _ in range(concurrency)))
        return state.unjudged


async def _asker(state: _State, waiting: Iterator[Call]) -> None:
    for call in waiting:
        if problem := await _judge(state, call):
            state.unjudged[call.name] = problem
            state.bar.write(f"{call.name}: unjudged: {problem}")
        state.bar.update()


async def _judge(state: _State, call: Call) -> str:
    """Ask until a reply gives scores; "" or why none did."""
    problem = ""
    for attempt in range(1, REPLIES + 1):
        marker = new_marker(call)
        text = prompt(call, marker)
        temperature = state.endpoint.temperature
        if attempt > 1 and temperature >= 0:
            temperature = max(temperature, WARMER)
        try:
            completion = await _send(state, call, text, temperature)
        except _GivenUp as error:
            return str(error)
        line = _line(state, call, completion) | {
            "attempt": attempt,
            "temperature": temperature,
            "marker": marker,
            "prompt_sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        verdict = parse(line, call)
        problem = verdict.problem
        state.journal.append(line | {"scores": verdict.scores, "problem": problem})
        state.tokens += _tokens_of(line)
        state.bar.set_postfix(tokens=f"{state.tokens:,}", refresh=False)
        if verdict.scores:
            break
    return problem


def _line(state: _State, call: Call, completion: ChatCompletion) -> dict:
    choice, usage = completion.choices[0], completion.usage
    return {
        "judge": state.endpoint.model,
        "mode": call.mode,
        "category": call.item.category,
        "number": call.item.number,
        "rotation": call.rotation,
        "order": call.order,
        "base_url": state.endpoint.base_url,
        "model": completion.model,
        "date": record.now(),
        "finish_reason": choice.finish_reason,
        "tokens": {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens} if usage else None,
        "reply": _safe(choice.message.content or ""),
    }


async def _send(state: _State, call: Call, text: str, temperature: float) -> ChatCompletion:
    """One reply, after as many tries as it takes up to TRIES. Raises _GivenUp, or EnvironmentFault where no further
    call can fare better."""
    reason, refused = "", False
    for attempt in range(TRIES):
        if attempt:
            await asyncio.sleep(min(PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.5, 1))
        while (rest := state.not_before - time.monotonic()) > 0:
            await asyncio.sleep(rest)
        try:
            completion = await _once(state, text, temperature)
            state.lost.clear()
            return completion
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
            state.not_before = max(state.not_before, time.monotonic() + wait)
        except (openai.APIError, TimeoutError, ValueError) as error:
            reason = _reason(error)
    # A prompt that is refused, too long perhaps, is refused in each of its orders: that counts once.
    state.lost.add((call.item.category, call.item.number) if refused else call.key)
    if len(state.lost) >= LOST_IN_A_ROW:
        raise EnvironmentFault(f"{state.endpoint.base_url}: {LOST_IN_A_ROW} in a row failed, the last with {reason}")
    raise _GivenUp(reason)


async def _once(state: _State, text: str, temperature: float) -> ChatCompletion:
    """One HTTP call. Raises openai.APIError, TimeoutError, or ValueError for a body that is no chat completion."""
    warmth = {"temperature": temperature} if temperature >= 0 else {}
    async with asyncio.timeout(state.endpoint.timeout):
        completion = await state.client.chat.completions.create(
            model=state.endpoint.model, messages=[{"role": "user", "content": text}], timeout=None, **warmth
        )
    if not isinstance(completion, ChatCompletion) or not completion.choices or not completion.choices[0].message:
        raise ValueError("a body that is no chat completion")
    if not isinstance(completion.choices[0].message.content, str | None):
        raise ValueError("a reply that is no text")
    return completion


def _end_where_hopeless(error: openai.APIStatusError, reason: str) -> None:
    """Raise EnvironmentFault for a refused key, a model or path that is not there, an account without credit."""
    if error.status_code in (401, 403):
        raise EnvironmentFault(f"the judge refuses the key in {KEY} ({reason})") from None
    if error.status_code == 404 or getattr(error, "code", None) == "insufficient_quota":
        raise EnvironmentFault(f"the judge cannot be asked: {reason}") from None


def _retry_after(error: openai.APIStatusError) -> float:
    """Seconds that the Retry-After header asks for, as a number or a date; 0 without one that can be read."""
    text = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _reason(error: Exception) -> str:
    """The error in one short line."""
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return "no reply in time"
    code = f"{error.status_code} " if isinstance(error, openai.APIStatusError) else ""
    message = (getattr(error, "message", "") or str(error)).removeprefix(f"Error code: {code}- ")
    cause = f" ({error.__cause__})" if isinstance(error, openai.APIConnectionError) and error.__cause__ else ""
    return _safe(f"{code}{message}{cause}".replace("\n", " ")[:200])


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
