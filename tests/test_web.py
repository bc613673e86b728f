"""The page over real HTTP on loopback, around a conversation that is made up: streams, sessions, safety."""

import asyncio
import contextlib
import json
import random
import socket
import threading
import time
from types import SimpleNamespace

import gradio
import httpx
import pytest
from gradio_client import Client

from utils import gate, web

DEFAULTS = {"temperature": 0.0, "top_p": 0.75, "top_k": 40, "num_beams": 1, "max_new_tokens": 512, "seed": 42}
RANGES = {
    "temperature": (0, 2), "top_p": (0.01, 1), "top_k": (1, 200), "num_beams": (1, 8), "max_new_tokens": (1, 4096),
    "seed": (0, 2**32 - 1),
}  # fmt: skip


class Conversation:
    """Answers with what it was asked; "slow" goes on for ever, "boom" fails, "\n x" begins with a blank line."""

    names, defaults, ranges = ["one", "two"], DEFAULTS, RANGES

    def __init__(self):
        self.running = self.steps = 0

    def about(self, name):
        return f"base → {name}"

    def respond(self, name, instruction, input, history, settings):
        if instruction == "boom":
            raise RuntimeError("inside")
        if instruction == "slow":
            self.running += 1
            try:
                while True:
                    self.steps += 1
                    time.sleep(0.01)
                    yield SimpleNamespace(text="…", notice="")
            finally:
                self.running -= 1
        said = json.dumps([name, instruction, input, history, settings], ensure_ascii=False, sort_keys=True)
        yield SimpleNamespace(text="…", notice="")
        yield SimpleNamespace(text="\n  x" if instruction == "blank" else said, notice="cut" if history else "")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launch(conversation, users=(), name: str = "127.0.0.1") -> tuple[gradio.Blocks, int, dict]:
    """(the page, its port, what it was launched with), served by web.serve but without waiting for its end."""
    port = free_port()
    page = web.build(conversation, "Test", [("例", "子")], lambda turns: json.dumps(turns, ensure_ascii=False))
    launched: dict = {}
    original = gradio.Blocks.launch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradio.Blocks, "launch", lambda self, **more: launched.update(more) or original(self, **more))
        patch.setattr(web, "_stay", lambda page: None)
        patch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
        patch.setenv("GRADIO_SHARE", "True")
        web.serve(page, name, port, False, list(users), gate.in_front(name, False))
    return page, port, launched


@pytest.fixture(scope="module")
def served():
    conversation = Conversation()
    page, port, launched = launch(conversation)
    yield SimpleNamespace(page=page, port=port, launched=launched, conversation=conversation)
    page.close()


def client(port: int, **more) -> Client:
    return Client(f"http://127.0.0.1:{port}", verbose=False, **more)


def ask(asked: Client, text: str, **settings):
    """One turn in this client's session: the messages shown."""
    return submit(asked, text, **settings).result(timeout=30)


def submit(asked: Client, text: str, **settings):
    return asked.submit(message=text, **settings, api_name="/chat")


def shown(result) -> list[tuple[str, str]]:
    """(role, text) of the messages in an endpoint's outputs."""
    messages = next(part for part in result if isinstance(part, list))
    return [(one["role"], "".join(piece["text"] for piece in one["content"])) for one in messages]


def test_the_address_asked_for_is_the_one_served_whatever_the_environment_says(served):
    assert served.page.server_name == "127.0.0.1" and served.page.server_port == served.port
    wanted = {
        "share": False, "max_file_size": "1kb", "enable_monitoring": False, "mcp_server": False, "ssr_mode": False,
        "pwa": False, "show_error": False, "run_history": False, "allowed_paths": [], "auth": None,
    }  # fmt: skip
    assert {name: served.launched[name] for name in wanted} == wanted
    assert served.page._queue.max_size == web.WAITING and served.page.analytics_enabled is False


def test_an_answer_streams_and_every_value_arrives_under_its_name(served):
    settings = {"temperature": 0.5, "top_p": 0.6, "top_k": 7, "num_beams": 2, "max_new_tokens": 9, "seed": 5}
    job = submit(client(served.port), "问", model="two", **settings)
    (_, question), (role, answer) = shown(job.result(timeout=30))
    assert (question, role) == ("问", "assistant")
    assert json.loads(answer) == ["two", "问", "", [], settings]
    assert shown(job.outputs()[0])[-1] == ("assistant", "…")


def test_a_second_turn_knows_the_first_and_only_in_its_own_session(served):
    first, second = client(served.port), client(served.port)
    ask(first, "blank")
    ask(second, "第二")
    answer = shown(ask(first, "再"))[-1][1]
    assert json.loads(answer)[3] == [["blank", "\n  x"]], "as it was answered, not as it is shown"
    assert json.loads(shown(ask(second, "再"))[-1][1])[3][0][0] == "第二"
    assert json.loads(first.predict(api_name="/rows"))[0] == ["blank", "\n  x"]


def test_undo_clear_and_retry(served):
    asked = client(served.port)
    ask(asked, "一")
    ask(asked, "二")
    result = asked.predict(api_name="/undo")
    assert [text for role, text in shown(result) if role == "user"] == ["一"] and result[-1] == "二"
    again = asked.predict(temperature=0.7, api_name="/retry")
    assert json.loads(shown(again)[-1][1])[4]["seed"] == 43 and again[-1] == 43
    again = asked.predict(api_name="/retry")
    assert json.loads(shown(again)[-1][1])[4]["seed"] == 42, "greedy answers have no seed"
    assert shown(asked.predict(api_name="/clear")) == []
    assert json.loads(asked.predict(api_name="/rows")) == []
    with pytest.raises(Exception, match="no answer to retry"):
        asked.predict(api_name="/retry")


def test_an_instruction_with_its_input(served):
    asked = client(served.port)
    answer = asked.predict(instruction="译", input="文", temperature=0.5, api_name="/answer")
    assert json.loads(answer) == ["one", "译", "文", [], {**DEFAULTS, "temperature": 0.5}]
    assert json.loads(asked.predict("译", api_name="/answer"))[:4] == ["one", "译", "", []]
    assert "two" in asked.predict(model="two", api_name="/about")


def test_an_error_reaches_the_user_and_the_server_lives(served, capsys):
    asked = client(served.port)
    ask(asked, "一")
    with pytest.raises(Exception, match=r"^inside$"):
        ask(asked, "boom")
    assert len(json.loads(shown(ask(asked, "二"))[-1][1])[3]) == 1, "the turn that failed is not part of it"
    assert "Traceback" not in capsys.readouterr().err


# --- What is turned away ---


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil", "[::1]", ""])
def test_a_foreign_host_header_is_refused(host, served):
    for path in ("/", "/config", "/gradio_api/info"):
        answer = httpx.get(f"http://127.0.0.1:{served.port}{path}", headers={"host": host})
        assert answer.status_code == 400, path
    assert httpx.get(f"http://localhost:{served.port}/config").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../../etc/passwd", "/file=/etc/passwd",
        "/gradio_api/file=utils/web.py", "/static/../../../../etc/passwd", "/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/gradio_api/file%3d/etc/passwd", "/theme.css/../../etc/passwd", "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/file=http://127.0.0.1:1/x", "/gradio_api/stream/../../etc/passwd", "/docs", "/openapi.json",
        "/monitoring", "/gradio_api/mcp/",
    ],
)  # fmt: skip
def test_no_address_gives_a_file_away(path, served):
    answer = httpx.get(httpx.URL(f"http://127.0.0.1:{served.port}", raw_path=path.encode()))
    assert "root:" not in answer.text and "def build" not in answer.text
    assert answer.status_code >= 400 or "swagger" not in answer.text.lower()


def test_a_body_of_30_mb_is_refused_and_nothing_can_be_uploaded(served):
    address = f"http://127.0.0.1:{served.port}/gradio_api"
    body = json.dumps({"data": ["x" * 30_000_000]})
    assert httpx.post(f"{address}/queue/join", content=body).status_code == 413
    chunks = (b"x" * 100_000 for _ in range(300))
    with contextlib.suppress(httpx.TransportError):  # the connection was closed on it
        assert httpx.post(f"{address}/queue/join", content=chunks).status_code >= 400
    for path in ("upload", "process_recording", "component_server", "stream/x"):
        assert httpx.post(f"{address}/{path}", files={"files": ("x.txt", b"x")}).status_code == 404
    assert ask(client(served.port), "问")


ODD = [
    None, True, -1, 1e308, "", "\0", "x" * 3000, [], {}, [[]], {"path": "/etc/passwd"}, {"url": "file:///etc/passwd"},
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"__type__": "update", "value": 1}, "../../x",
]  # fmt: skip


def test_bodies_that_are_no_requests_are_answered_and_forgotten(served, capsys):
    """scripts/bench/page.py sends thousands, to a page with a model behind it."""
    dice = random.Random(0)
    address = f"http://127.0.0.1:{served.port}/gradio_api"
    with httpx.Client(timeout=20) as http:
        for number in range(150):
            data = [dice.choice(ODD) for _ in range(9)] if number % 3 else dice.choice(ODD)
            body = {
                "data": data,
                "session_hash": dice.choice(["fuzz", None, 7]),
                "fn_index": dice.choice([*range(20), -1]),
            }
            raw = json.dumps(dice.choice([body, body, body, dice.choice(ODD)])).encode()
            raw = raw[: dice.randint(0, len(raw))] if number % 7 == 0 else raw
            names = ("queue/join", "run/chat", "run/answer", "run/rows", "run/about", "run/undo", "call/chat", "cancel")
            headers = {"content-type": "application/json"}
            answer = http.post(f"{address}/{dice.choice(names)}", content=raw, headers=headers)
            assert "root:" not in answer.text and "Traceback" not in answer.text
    assert ask(client(served.port), "问")


def test_a_leaver_frees_the_place_within_a_second(served):
    """All places are taken by clients that close their connection without a word."""
    wait_until(lambda: served.conversation.running == 0)  # what an earlier test has started is over

    reached = []

    def all_run() -> bool:
        """Whether all places have been taken at once: the first who leaves must not keep the others waiting for it."""
        reached.extend([True] * (served.conversation.running == web.TOGETHER))
        return bool(reached)

    async def leave() -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}/gradio_api") as http:
            await asyncio.gather(*(stay(http, f"leaver{number}") for number in range(web.TOGETHER)))

    async def stay(http, session: str) -> None:
        body = {"data": chat_data("slow"), "session_hash": session, "fn_index": chat_index(served.page)}
        (await http.post("/queue/join", json=body)).raise_for_status()
        async with http.stream("GET", "/queue/data", params={"session_hash": session}) as lines:
            async for line in lines.aiter_lines():
                if "process_generating" in line:
                    break
            await asyncio.to_thread(wait_until, all_run)

    asyncio.run(leave())
    begin = time.monotonic()
    wait_until(lambda: served.conversation.running == 0)
    assert time.monotonic() - begin < 1
    assert ask(client(served.port), "问")


def wait_until(condition, seconds: float = 30) -> None:
    """Raises AssertionError when it has not come true by then."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not come true in time"
        time.sleep(0.01)


def chat_index(page: gradio.Blocks) -> int:
    return next(index for index, fn in page.fns.items() if fn.api_name == "chat")


def chat_data(text: str) -> list:
    """The values of /chat as a browser sends them, null for the session's conversation."""
    return [text, None, "one", *DEFAULTS.values()]


def test_a_stopped_answer_stays_and_frees_its_place(served):
    asked = client(served.port)
    job = submit(asked, "slow")
    while not job.outputs() and not job.done():
        time.sleep(0.01)
    job.cancel()
    begin = time.monotonic()
    while served.conversation.running and time.monotonic() - begin < 5:
        time.sleep(0.01)
    assert time.monotonic() - begin < 1
    assert json.loads(asked.predict(api_name="/rows")) == [["slow", "…"]]


def test_who_comes_when_the_queue_is_full_is_told_so(monkeypatch):
    monkeypatch.setattr(web, "WAITING", 2)
    conversation = Conversation()
    page, port, _ = launch(conversation)
    try:
        address = f"http://127.0.0.1:{port}/gradio_api/queue/join"
        body = {"data": chat_data("slow"), "fn_index": chat_index(page)}
        answers = [httpx.post(address, json={**body, "session_hash": f"s{number}"}) for number in range(12)]
        codes = [answer.status_code for answer in answers]
        past = httpx.post(f"http://127.0.0.1:{port}/gradio_api/run/chat", json={"data": chat_data("问")})
        assert past.status_code == 404, "nobody passes the queue by"
        assert codes[: web.TOGETHER] == [200] * web.TOGETHER and codes[-1] == 429
        assert answers[-1].json() == {"detail": gate.BUSY}
    finally:
        page.close()


def test_with_a_login_nothing_is_shown_without_it():
    page, port, _ = launch(Conversation(), [("li", "密码:x")])
    try:
        for path in ("/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=x"):
            assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 401, path
        join = httpx.post(f"http://127.0.0.1:{port}/gradio_api/queue/join", json={"data": [], "fn_index": 0})
        assert join.status_code == 401
        wrong = httpx.post(f"http://127.0.0.1:{port}/login", data={"username": "li", "password": "no"})
        assert wrong.status_code == 400
        assert shown(ask(client(port, auth=("li", "密码:x")), "问"))[0] == ("user", "问")
    finally:
        page.close()


def test_many_sessions_at_once_lose_and_cross_nothing(served):
    """scripts/bench/page.py does it with a model, and with more of them."""
    wrong = []

    def session(number: int) -> None:
        asked = client(served.port)
        for turn in range(3):
            answer = json.loads(shown(ask(asked, f"{number}-{turn}"))[-1][1])
            if [one[0] for one in answer[3]] + [answer[1]] != [f"{number}-{before}" for before in range(turn + 1)]:
                wrong.append((number, turn, answer))

    threads = [threading.Thread(target=session, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
