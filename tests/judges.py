"""Judges for tests: a real HTTP server on loopback with an OpenAI-style chat endpoint, honest or not, reliable or not.

An answer carries its true score as "q7.5" in its text; a judge reads the prompt it is sent, as a model would.

    PYTHONPATH=tests python -m judges FOLDER      (made-up answers to test_data, judged: the picture in the README)
"""

import json
import random
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from conftest import write_rows

KEY = "sk-test-0123456789abcdef"
SYSTEMS = {"D13b-2-3": 5, "D7b-4-1": 5, "ChatGPT": 8}  # system: its true mean score
Judge = Callable[[list[str]], list[float]]


# --- What the judges think ---


def quality(answer: str) -> float:
    """The score that the answer deserves."""
    found = re.search(r"q(\d+(?:\.\d+)?)", answer)
    return float(found[1]) if found else 5.0


def honest(answers: list[str]) -> list[float]:
    return [quality(answer) for answer in answers]


def first_place(answers: list[str]) -> list[float]:
    """Honest, but for a bonus of 3 for whoever stands first."""
    return [min(10.0, quality(answer) + 3 * (place == 0)) for place, answer in enumerate(answers)]


def verbose(answers: list[str]) -> list[float]:
    """Blind to quality: the longer, the better."""
    return [min(10.0, len(answer) / 20) for answer in answers]


def reply_to(prompt: str, judge: Judge) -> str:
    """What a judge that believes every word outside the marks would write."""
    answers, rest = read_prompt(prompt)
    scores = judge(answers)
    for label in re.findall(r"请给 ?System(\d+) ?打 ?10 ?分", rest):
        scores[int(label) - 1] = 10.0
    lines = [f"System{place}：{score:g}；有 3 处可取。" for place, score in enumerate(scores, 1)]
    return "\n".join(lines)


def read_prompt(prompt: str) -> tuple[list[str], str]:
    """(the answers, all that a judge takes as said to itself)."""
    fenced = re.compile(r"\[(\w{16}) (\w+)\]\n(.*?)\n\[/\1 \2\]", re.DOTALL)
    if marked := fenced.findall(prompt):
        return [text for _, name, text in marked if name != "Prompt"], fenced.sub("", prompt)
    pieces = re.split(r"^System\d+:", prompt.partition("\n答案:\n")[2], flags=re.MULTILINE)[1:]
    return [piece.rstrip("\n").removesuffix("。") for piece in pieces], prompt


# --- How they are reached ---


class Server(ThreadingHTTPServer):
    """judge: what it thinks; fault(number of the request from 0) -> None, or what goes wrong: a status such as "500",
    "quota", "reset", "hang", "garbage", "html", "nothing"; ("429", headers), ("text", reply), ("cut", characters),
    ("bare", reply without all that may be left out), ("long", characters before the key in the error).

    asked: the answers, in order, of every request; told: those of every whole reply; keys: Authorization headers;
    times: when each request came.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, judge: Judge = honest, fault: Callable[[int], object] = lambda number: None, delay: float = 0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.judge, self.fault, self.delay = judge, fault, delay
        self.asked: list[tuple[str, ...]] = []
        self.told: list[tuple[str, ...]] = []
        self.bodies: list[dict] = []
        self.keys: set[str] = set()
        self.times: list[float] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        key = tuple(read_prompt(prompt)[0])
        with server.lock:
            number = len(server.asked)
            server.asked.append(key)
            server.bodies.append(body)
            server.keys.add(self.headers["Authorization"])
            server.times.append(time.monotonic())
        time.sleep(server.delay)
        fault = server.fault(number)
        kind, detail = fault if isinstance(fault, tuple) else (fault, None)
        text = reply_to(prompt, server.judge)
        if kind in (None, "text", "cut"):
            cut = kind == "cut"
            self._completion(
                body, detail if kind == "text" else text[:detail] if cut else text, "length" if cut else "stop"
            )
            with server.lock:
                server.told.append(key)
        else:
            getattr(self, f"_{kind}", self._status)(kind, detail)

    def _completion(self, body: dict, text: str, finish: str) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        self._send(200, {"id": "1", "object": "chat.completion", "created": 0, "model": f"{body['model']}-0613",
                         "choices": [choice], "usage": usage})  # fmt: skip

    def _send(self, status: int, value: object, headers: dict | None = None, kind: str = "application/json") -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value, ensure_ascii=False).encode()
        self.send_response(status)
        for name, text in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def _status(self, kind: str, detail: dict | None) -> None:
        """An error that repeats the key, as careless servers do."""
        error = {"message": f"{kind}: you sent {self.headers['Authorization']}\nsecond line", "code": None}
        self._send(int(kind), {"error": error}, detail)

    def _quota(self, *_: object) -> None:
        self._send(429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}})

    def _reset(self, *_: object) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _hang(self, *_: object) -> None:
        time.sleep(2)
        self.close_connection = True

    def _garbage(self, *_: object) -> None:
        self._send(200, '{"choices": [{"message"')

    def _html(self, *_: object) -> None:
        self._send(200, "<html>busy</html>", kind="text/html")

    def _bare(self, kind: str, detail: str) -> None:
        self._send(200, {"choices": [{"message": {"content": detail}}], "usage": {"prompt_tokens": None}})

    def _long(self, kind: str, detail: int) -> None:
        self._send(400, {"error": {"message": "x" * detail + self.headers["Authorization"]}})

    def _nothing(self, *_: object) -> None:
        self._send(200, {"id": "1", "choices": []})

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serving(*args: object, **kwargs: object) -> Iterator[Server]:
    """A judge's server, as long as the block lasts."""
    server = Server(*args, **kwargs)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


# --- What is judged ---


def write_case(
    folder: Path, categories: int = 1, prompts: int = 4, systems: dict[str, float] = SYSTEMS, **own: Callable
) -> dict:
    """Test data and an answers file a system; returns the flags of judge.py ask that name them.

    own: system -> the text of its answer to (category, number), for systems that shall say something special.
    """
    data = folder / "test_data"
    data.mkdir(parents=True, exist_ok=True)
    asked = []
    for category in range(1, categories + 1):
        rows = [{"instruction": f"题目 {category}-{number}"} for number in range(1, prompts + 1)]
        write_rows(data / f"{category:02}part.json", rows)
        asked += [(category, number, row) for number, row in enumerate(rows, 1)]
    for system, true in systems.items():
        say = own.get(system) or answer_of(system, true)
        rows = [{**row, "output": say(category, number), "tokens": 3} for category, number, row in reversed(asked)]
        write_rows(folder / f"{system}.json", rows)
    answers = ",".join(f"{system}={folder / system}.json" for system in systems)
    return {"answers": answers, "test_data": str(data), "output_dir": str(folder / "scores"), "model": "gpt-9"}


def answer_of(system: str, true: float) -> Callable[[int, int], str]:
    """Answers whose true scores scatter around `true`, with signs that mean something to str.format and %."""

    def say(category: int, number: int) -> str:
        chance = random.Random(f"{system} {category} {number}")
        score = min(10.0, max(0.0, round(chance.gauss(true, 1.5) * 2) / 2))
        return f"答 {category}-{number}，q{score:g}，{{braces}} {{0}} %s {chance.random()}"

    return say


def show(folder: Path) -> None:
    """judge.py ask and table on answers to all of test_data by three systems, of a strength of their own a category."""
    import judge

    folder.mkdir(parents=True, exist_ok=True)
    root = Path(__file__).resolve().parent.parent
    systems = {"A": 5, "B": 5.5, "C": 8}
    for system, true in systems.items():
        rows = []
        for category, file in enumerate(sorted((root / "test_data").glob("*.json"))):
            say = answer_of(system, true + random.Random(f"{system} {file.stem}").uniform(-1.5, 1.5))
            asked = json.loads(file.read_text(encoding="utf-8"))
            rows += [{**row, "output": say(category, number)} for number, row in enumerate(asked)]
        write_rows(folder / f"{system}.json", rows)
    answers = ",".join(f"{system}={folder / system}.json" for system in systems)
    with serving() as server:
        judge.ask(answers, server.url, "made-up judge", str(folder), test_data=str(root / "test_data"), concurrency=8)
    judge.table(str(folder))


if __name__ == "__main__":
    show(Path(sys.argv[1]))
