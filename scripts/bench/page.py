"""The chat page under load: many sessions at once, clients that leave, bodies that are no requests.

    python -m tests.tiny_models /tmp/tiny
    OMP_NUM_THREADS=1 python scripts/bench/page.py --base_model /tmp/tiny

It starts generate.py's page on loopback and speaks Gradio's HTTP with it. Every answer of a session must be the one
that the model gives to this conversation alone; after the leavers and after the bodies the page must answer as before.
"""

import asyncio
import json
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import cli

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"temperature": 0, "top_p": 0.75, "top_k": 40, "num_beams": 1, "max_new_tokens": 16, "seed": 42}
FULL = 429


def main(
    base_model: str = "",  # a model folder, a tiny one
    sessions: int = 64,  # at once
    turns: int = 20,  # of each session
    leavers: int = 200,  # clients that close in the middle of an answer
    bodies: int = 2000,  # requests that are none
    seed: int = 0,  # of texts and moments
) -> None:
    """Start the page, load it, and stop it. Exits with an error where something is lost, crossed, stuck or down."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "generate.py"), f"--base_model={base_model}", f"--server_port={port}"]
    process = subprocess.Popen([*command, "--prompt_template=alpaca_short"])
    try:
        asyncio.run(_all(base_model, f"http://127.0.0.1:{port}", sessions, turns, leavers, bodies, random.Random(seed)))
        assert process.poll() is None, "the server is down"
    finally:
        process.terminate()
        process.wait()


async def _all(base_model: str, address: str, sessions: int, turns: int, leavers: int, bodies: int, dice) -> None:
    import httpx

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as http:
        page = await _page(http)
        expected = await asyncio.to_thread(_serial, base_model, sessions, turns)
        begin = time.monotonic()
        results = await asyncio.gather(*(_session(http, page, number, turns) for number in range(sessions)))
        busy = sum(times for _, times in results)
        wrong = [number for number, (rows, _) in enumerate(results) if rows != expected[number]]
        assert not wrong, f"sessions with other answers than alone: {wrong}"
        seconds = time.monotonic() - begin
        print(
            f"{sessions} sessions x {turns} turns: {sessions * turns} answers as alone, none lost, none crossed, "
            f"{seconds:.0f} s; told to come again: {busy} times"
        )
        if leavers:
            begin = time.monotonic()
            for start in range(0, leavers, 20):
                await asyncio.gather(*(_leave(http, page, start + n, dice.uniform(0, 0.3)) for n in range(20)))
            seconds = time.monotonic() - begin
            print(f"{leavers} clients left in {seconds:.0f} s; then an answer after {await _probe(http, page):.2f} s")
        if bodies:
            codes: dict[int, int] = {}
            for _ in range(bodies):
                code = await _fuzz(http, page, dice)
                codes[code] = codes.get(code, 0) + 1
            told = ", ".join(f"{code}: {times}" for code, times in sorted(codes.items()))
            print(f"{bodies} bodies, answered with {told}; then an answer after {await _probe(http, page):.2f} s")


async def _page(http) -> dict:
    """{"index": of /chat's function, "inputs": the names of its values, None for the session's state}."""
    import httpx

    for _ in range(600):
        try:
            config = (await http.get("/config")).json()
            break
        except httpx.TransportError:
            await asyncio.sleep(0.1)
    labels = {one["id"]: one["props"].get("label") for one in config["components"]}
    chat = next(one for one in config["dependencies"] if one["api_name"] == "chat")
    names = ("adapter", "message", *SETTINGS)
    texts = [label if isinstance(label := labels[one], str) else json.dumps(label) for one in chat["inputs"]]
    inputs = [next((name for name in names if f'_{name}"' in text), None) for text in texts]
    adapter = next(one["props"]["value"] for one in config["components"] if one["type"] == "dropdown")
    return {"index": chat["id"], "inputs": inputs, "adapter": adapter}


def _question(number: int, turn: int) -> str:
    return f"{number}和{turn}是什么？"


def _serial(base_model: str, sessions: int, turns: int) -> list[list[str]]:
    """What the model answers to each conversation alone, one after another."""
    from utils import chat, generation, models, runtime, tuned

    base = tuned.read_base(base_model)
    choices = tuned.read_tuned("", "alpaca_short", base)
    model = models.load_base(base["path"], False, False, "auto", runtime.device())
    made = generation.assistants(model, models.load_tokenizer(base["path"]), choices, generation.Sampling())
    talk = chat.Chat(made, {one.name: one.about for one in choices})
    found = []
    for number in range(sessions):
        history: list[list[str]] = []
        for turn in range(turns):
            *_, piece = talk.respond(talk.names[0], _question(number, turn), "", history, SETTINGS)
            history.append([_question(number, turn), piece.text])
        found.append([answer for _, answer in history])
    return found


async def _session(http, page: dict, number: int, turns: int) -> tuple[list[str], int]:
    """(answers, times it was told that the page is busy) of one conversation."""
    answers, busy = [], 0
    for turn in range(turns):
        while (answer := await _ask(http, page, f"session{number}", _question(number, turn))) is None:
            busy += 1
            await asyncio.sleep(0.2)
        answers.append(answer)
    return answers, busy


async def _join(http, page: dict, session: str, text: str) -> int:
    given = {**SETTINGS, "adapter": page["adapter"], "message": text}
    data = [given.get(name) for name in page["inputs"]]
    body = {"data": data, "fn_index": page["index"], "session_hash": session}
    return (await http.post("/gradio_api/queue/join", json=body)).status_code


async def _ask(http, page: dict, session: str, text: str) -> str | None:
    """The whole answer (as the page holds it for training rows); None where the queue is full."""
    code = await _join(http, page, session, text)
    if code == FULL:
        return None
    assert code == 200, code
    async with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as lines:
        async for line in lines.aiter_lines():
            if '"process_completed"' in line:
                message = json.loads(line.removeprefix("data: "))
                assert message["success"], message
                break
    rows = await http.post("/gradio_api/run/rows", json={"data": [None], "session_hash": session})
    (row,) = json.loads(rows.json()["data"][0])
    return row["output"]


async def _leave(http, page: dict, number: int, seconds: float) -> None:
    """Ask for a long answer, and close the connection without a word after some seconds."""
    session = f"leaver{number}"
    if await _join(http, page, session, "说" * 200) != 200:
        return
    async with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}):
        await asyncio.sleep(seconds)


async def _probe(http, page: dict) -> float:
    begin = time.monotonic()
    while await _ask(http, page, f"probe{begin}", "你好吗？") is None:
        await asyncio.sleep(0.05)
    return time.monotonic() - begin


async def _fuzz(http, page: dict, dice) -> int:
    """Send a body that is broken in some way to some endpoint; the status it is answered with."""
    odd = [
        None, True, -1, 1e308, "", "\0", "x" * 5000, [], {}, [[]], {"path": "/etc/passwd"}, {"url": "file:///etc/passwd"},
        {"__type__": "update", "value": 1}, {"role": "user", "content": {"path": "/etc/passwd"}}, "../../etc/passwd",
    ]  # fmt: skip
    data: object = [dice.choice(odd) for _ in page["inputs"]]
    if dice.random() < 0.3:
        data = dice.choice([*odd, [dice.choice(odd)] * dice.randint(0, 40)])
    body: object = {
        "data": data,
        "fn_index": dice.choice([page["index"], *range(25), -1, "x", None, 10**9]),
        "session_hash": dice.choice([f"fuzz{dice.random()}", None, "", {}, "x" * 1000]),
    }
    if dice.random() < 0.2:
        body = dice.choice(odd)
    names = (
        "queue/join",
        "run/chat",
        "run/answer",
        "run/rows",
        "run/about",
        "run/undo",
        "call/chat",
        "cancel",
        "reset",
    )
    raw = json.dumps(body).encode()
    if dice.random() < 0.2:
        at = dice.randint(0, len(raw))
        raw = raw[:at] + bytes(dice.randint(0, 255) for _ in range(3)) + raw[at + dice.randint(0, 4) :]
    headers = {"content-type": "application/json"}
    answer = await http.post(f"/gradio_api/{dice.choice(names)}", content=raw, headers=headers)
    assert "root:" not in answer.text and "Traceback" not in answer.text, answer.text[:500]
    return answer.status_code


if __name__ == "__main__":
    cli.run(main)
