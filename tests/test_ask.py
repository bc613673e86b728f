"""Asking a judge over real HTTP on loopback: what goes wrong on the way, what is kept, what is never asked twice.

python -m pytest tests/test_ask.py
"""

import email.utils
import hashlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import judges
import pytest
from judges import KEY, serving, write_case

import judge
from utils import ask, judging, verdicts
from utils.errors import Fault

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def quick_and_keyed(monkeypatch):
    """Pauses of milliseconds, a key, no proxy between this process and loopback."""
    monkeypatch.setattr(ask, "PAUSE", 0.005)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def lines(flags: dict) -> list[dict]:
    return verdicts.read(flags["output_dir"])


def outcome(flags: dict, server, **more) -> Exception | None:
    """How judge.py ask ends: None, or the fault."""
    try:
        judge.ask(**flags, base_url=server.url, **more)
    except Fault as fault:
        return fault
    return None


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def once(flags: dict) -> bool:
    """Whether each call has exactly one line, with scores."""
    keys = Counter(verdicts.key_of(line) for line in lines(flags))
    return set(keys.values()) == {1} and all(line["scores"] for line in lines(flags))


# --- The plain way ---


def test_every_call_is_asked_once_and_a_rerun_asks_nothing(tmp_path, capsys):
    flags = write_case(tmp_path)
    with serving() as server:
        assert outcome(flags, server) is None
        assert len(server.asked) == len(set(server.asked)) == 12
        assert once(flags) and len(lines(flags)) == 12
        assert "12 of 12 verdicts, 1,440 tokens" in capsys.readouterr().out
        assert outcome(flags, server) is None
        assert len(server.asked) == 12
    assert "12 of 12 verdicts, 1,440 tokens" in capsys.readouterr().out  # what was spent before counts too


def test_a_rerun_asks_only_what_is_missing(tmp_path):
    flags = write_case(tmp_path)
    with serving() as server:
        outcome(flags, server)
        path = Path(flags["output_dir"]) / verdicts.NAME
        kept = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(kept[:5] + kept[7:]))
        server.asked.clear()
        assert outcome(flags, server) is None
        gone = [tuple(judges.read_prompt(body["messages"][0]["content"])[0]) for body in server.bodies[-2:]]
        assert len(server.asked) == 2 and set(server.asked) == set(gone)
    assert once(flags)


def test_what_is_sent(tmp_path):
    flags = write_case(tmp_path, prompts=1)
    with serving() as server:
        outcome(flags, server, concurrency=1)
        outcome({**flags, "model": "another"}, server, temperature=-1.0, mode="faithful")
    *robust, faithful = server.bodies
    assert server.keys == {f"Bearer {KEY}"}
    assert [(body["model"], body["temperature"]) for body in robust] == [("gpt-9", 0.0)] * 3
    assert faithful["model"] == "another" and "temperature" not in faithful
    assert not any(name in json.dumps(robust) for name in ("D13b", "D7b"))  # blind
    assert {len(body["messages"]) for body in server.bodies} == {1}


def test_a_line_tells_all_that_is_needed_to_replay_it(tmp_path):
    flags = write_case(tmp_path, prompts=2)
    with serving() as server:
        outcome(flags, server)
        outcome(flags, server, mode="faithful")
    items, seed = judging.load(flags["output_dir"])
    calls = {call.key: call for mode in ("robust", "faithful") for call in judging.calls(items, mode, seed)}
    sent = {sha256(body["messages"][0]["content"]) for body in server.bodies}
    assert len(lines(flags)) == len(calls) == 8
    for line in lines(flags):
        call = calls[verdicts.key_of(line)]
        assert line["prompt_sha256"] == sha256(judging.prompt(call, line["marker"]))
        assert line["prompt_sha256"] in sent
        assert tuple(line["order"]) == call.order
        assert line["model"] == "gpt-9-0613" and line["date"].startswith("20") and line["base_url"] == server.url
        assert line["scores"] == list(verdicts.parse(line, call).scores)
    assert len({line["marker"] for line in lines(flags)}) == 8


def test_two_judges_and_two_modes_share_a_folder(tmp_path):
    flags = write_case(tmp_path, prompts=1)
    with serving() as server:
        for model, mode in (("a", "robust"), ("b", "robust"), ("a", "faithful")):
            assert outcome({**flags, "model": model}, server, mode=mode) is None
    assert Counter(verdicts.judge_of(line) for line in lines(flags)) == {"a": 3, "b": 3, "a (faithful)": 1}


# --- What goes wrong and passes ---


@pytest.mark.parametrize("fault", ["500", "503", "408", "429", "reset", "hang", "garbage", "html", "nothing"])
def test_a_failure_is_asked_again(fault, tmp_path):
    flags = write_case(tmp_path, prompts=1)
    with serving(fault=lambda number: fault if number < 2 else None) as server:
        assert outcome(flags, server, concurrency=1, timeout=0.3) is None
        assert len(server.asked) == 5
    assert once(flags)
    assert server.times[2] - server.times[0] < 3.5  # two that hang for 2 s each are not waited for


@pytest.mark.parametrize(
    "text",
    [
        "",
        "抱歉，我不能打分。",
        "System 分数；System 解释。",
        "System1：8\nSystem2：7",
        "System1：11\nSystem2：7\nSystem3：-1",
    ],
)
def test_a_reply_without_scores_is_asked_again_and_kept(text, tmp_path):
    flags = write_case(tmp_path, prompts=1)
    with serving(fault=lambda number: ("text", text) if number < 2 else None) as server:
        assert outcome(flags, server, concurrency=1) is None
    got = lines(flags)
    assert [line["reply"] for line in got[:2]] == [text, text] and all(line["problem"] for line in got[:2])
    assert [bool(line["scores"]) for line in got] == [False, False, True, True, True]
    assert [body["temperature"] for body in server.bodies] == [0, ask.WARMER, ask.WARMER, 0, 0]


def test_a_server_that_sends_nothing_but_the_reply_is_understood(tmp_path, capsys):
    flags = write_case(tmp_path, prompts=1)
    with serving(fault=lambda number: ("bare", "System1：8\nSystem2：7\nSystem3：9")) as server:
        assert outcome(flags, server) is None
    assert once(flags) and "3 of 3 verdicts, 0 tokens" in capsys.readouterr().out


def test_a_cut_reply_is_asked_again_though_its_scores_can_be_read(tmp_path):
    flags = write_case(tmp_path, prompts=1)
    with serving(fault=lambda number: ("cut", 1000) if number == 0 else None) as server:
        assert outcome(flags, server, concurrency=1) is None
    assert [line["problem"] for line in lines(flags)] == ["the reply is cut", "", "", ""]


MIX = (
    "500",
    "503",
    "reset",
    "hang",
    "garbage",
    "html",
    ("text", "System1：7-8"),
    ("cut", 9),
    ("429", {"Retry-After": "0"}),
)


def test_a_judge_that_fails_a_fifth_of_its_calls_judges_everything_once(tmp_path):
    flags = write_case(tmp_path, categories=2, prompts=8)
    failing = [number for number in range(2000) if (number * 7919) % 5 == 0]
    with serving(fault=lambda number: MIX[number // 5 % len(MIX)] if number in failing else None) as server:
        fault = outcome(flags, server, timeout=0.3)
    good = Counter(verdicts.key_of(line) for line in lines(flags) if line["scores"])
    assert set(good.values()) == {1}
    assert len(good) == 48 and fault is None
    assert len(server.asked) > 48 * 1.15


def test_what_stays_without_scores_is_listed_and_asked_for_by_the_next_run(tmp_path, capsys):
    flags = write_case(tmp_path, prompts=2)
    refused = []

    def fault(number):
        refused.append(server.asked[number]) if number == 0 else None
        return ("text", "不打分") if server.asked[number] == refused[0] else None

    with serving(fault=fault) as server:
        left = outcome(flags, server, concurrency=1)
        assert left.exit_code == 6 and str(left).startswith("1 of 6 stay unjudged: 01part 1 turn 1;")
        assert len(server.asked) == 5 + ask.REPLIES
        assert "01part 1 turn 1: unjudged: System1: no score" in "".join(capsys.readouterr())
        server.fault = lambda number: None
        server.asked.clear()
        assert outcome(flags, server) is None
        assert server.asked == refused


# --- Waiting when told to ---


@pytest.mark.parametrize(
    "form", [lambda: "1", lambda: "1.0", lambda: email.utils.formatdate(time.time() + 2, usegmt=True)]
)
def test_retry_after_is_honoured_by_all_askers(form, tmp_path):
    flags = write_case(tmp_path, prompts=2)
    with serving(fault=lambda number: ("429", {"Retry-After": form()}) if number == 0 else None, delay=0.05) as server:
        assert outcome(flags, server, concurrency=2) is None
    assert once(flags)
    after = [moment - server.times[0] for moment in server.times[1:]]
    early = [moment for moment in after if moment < 0.9]
    assert len(early) <= 2 and len(after) == 6  # what the other asker had sent by then; without waiting it is 6
    assert max(after) < 8


def test_a_wait_beyond_reason_leaves_the_call_for_another_run(tmp_path):
    flags = write_case(tmp_path, prompts=1)
    with serving(fault=lambda number: ("429", {"Retry-After": "86400"}) if number == 0 else None) as server:
        left = outcome(flags, server, concurrency=1)
    assert left.exit_code == 6 and len(server.asked) == 3


def test_tries_are_bounded(tmp_path):
    flags = write_case(tmp_path, prompts=1)
    with serving(fault=lambda number: "500" if number < ask.TRIES else None) as server:
        left = outcome(flags, server, concurrency=1)
    assert left.exit_code == 6
    assert len(server.asked) == ask.TRIES + 2


def test_pauses_grow_and_are_bounded(tmp_path, monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(ask.asyncio, "sleep", sleep)
    monkeypatch.setattr(ask, "PAUSE", 4.0)
    flags = write_case(tmp_path, prompts=1)
    with serving(fault=lambda number: "503" if number < 5 else None) as server:
        assert outcome(flags, server, concurrency=1) is None
    assert [low <= pause <= 2 * low for pause, low in zip(slept, (2, 4, 8, 15, 15), strict=True)] == [True] * 5


# --- What ends the run ---


@pytest.mark.parametrize("fault", ["401", "403", "404", "quota"])
def test_a_judge_that_will_never_answer_ends_the_run_at_once(fault, tmp_path):
    flags = write_case(tmp_path)
    with serving(fault=lambda number: fault) as server:
        left = outcome(flags, server, concurrency=2)
    assert left.exit_code == 5 and len(server.asked) <= 2
    assert KEY not in str(left) and "\n" not in str(left)


def test_a_judge_that_is_not_there_ends_the_run_soon(tmp_path):
    flags = write_case(tmp_path, prompts=30)
    with serving() as server:
        pass
    left = outcome(flags, server, concurrency=2)
    assert left.exit_code == 5 and "5 in a row failed" in str(left)


def test_a_bad_request_is_not_sent_again(tmp_path):
    flags = write_case(tmp_path, prompts=1)
    with serving(fault=lambda number: "400" if number == 0 else None) as server:
        assert outcome(flags, server, concurrency=1).exit_code == 6
        assert len(server.asked) == 3


def test_prompts_that_are_too_long_in_every_order_do_not_keep_the_rest_from_being_judged(tmp_path):
    flags = write_case(tmp_path, prompts=6)
    with serving() as server:
        server.fault = lambda n: "400" if re.search("1-[12]，", server.asked[n][0]) else None
        for _ in range(2):  # the second run begins with the six that the first was refused
            left = outcome(flags, server, concurrency=1)
            assert left.exit_code == 6 and str(left).startswith("6 of 18 stay unjudged: 01part 1 turn 1, ")
        server.fault = lambda number: "400"
        more = write_case(tmp_path / "more", prompts=6)
        left = outcome(more, server, concurrency=1)
    assert left.exit_code == 5 and "5 in a row failed, the last with 400 400: you sent" in str(left)


def test_another_temperature_is_refused(tmp_path):
    flags = write_case(tmp_path, prompts=1)
    with serving(fault=lambda number: ("text", "不打分") if number == 0 else None) as server:
        assert outcome(flags, server, concurrency=1) is None
        left = outcome(flags, server, temperature=0.5)
        assert left.exit_code == 3 and "gpt-9 was asked at --temperature 0, not 0.5; take that" in str(left)
        assert outcome({**flags, "model": "other"}, server, temperature=0.5) is None


@pytest.mark.parametrize("key", [None, "", "  ", "sk-\u201cquoted\u201d", "two\nlines"])
def test_without_a_usable_key_nothing_is_sent(key, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY") if key is None else monkeypatch.setenv("OPENAI_API_KEY", key)
    with serving() as server:
        left = outcome(write_case(tmp_path), server)
    assert left.exit_code == 5 and "OPENAI_API_KEY" in str(left) and not server.asked
    assert not key or len(key.strip()) < 3 or key not in str(left)


def test_the_key_is_written_nowhere(tmp_path, capfd, monkeypatch):
    """Not by a server that repeats it, not in a reply, not in a traceback, not in the client's own log."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")  # as `export OPENAI_API_KEY="$(cat file)"` may leave it
    flags = write_case(tmp_path, prompts=1)
    for fault in ("401", "500", "400", ("text", f"Your key is {KEY}")):
        with serving(fault=lambda number, fault=fault: fault) as server:
            left = outcome(flags, server, concurrency=1)
            assert left is not None and KEY not in str(left)
            command = [sys.executable, ROOT / "judge.py", "ask", "--debug", f"--base_url={server.url}"]
            command += [f"--{name}={value}" for name, value in flags.items()]
            if fault == "401":
                done = subprocess.run(
                    command, capture_output=True, text=True, env={"OPENAI_API_KEY": KEY, "OPENAI_LOG": "debug"}
                )
                assert done.returncode == 5 and "Traceback" in done.stderr
                assert KEY not in done.stdout + done.stderr
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"Your key is ***" in written and KEY.encode() not in written
    assert KEY not in "".join(capfd.readouterr())


def test_no_part_of_the_key_is_told_where_a_long_error_is_cut(tmp_path, capfd):
    with serving(fault=lambda number: ("long", 170 + 7 * number)) as server:
        assert outcome(write_case(tmp_path, prompts=1), server, concurrency=1).exit_code == 6
    said = "".join(capfd.readouterr())
    assert said.count("unjudged: 400 ") == 3 and KEY[:7] not in said
