"""judge.py as a user starts it: kills at any moment, exit codes, Ctrl-C.

python -m pytest tests/test_judge_processes.py
JUDGE_KILLS=50 python -m pytest -s tests/test_judge_processes.py -k kills      # scripts/bench/judge_kills.sh
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from judges import KEY, serving, write_case
from test_judge_chain import quick_and_keyed  # noqa: F401 (a fixture for every test here too)

import judge
from utils import verdicts

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("JUDGE_KILLS", "3"))


def test_kills_at_any_moment_lose_nothing_and_ask_nothing_twice(tmp_path):
    """Each run is killed after a random number of replies; what is on the disk by then is never asked again."""
    prompts = max(4, KILLS * 5 // 3)
    flags = write_case(tmp_path, prompts=prompts)
    path = Path(flags["output_dir"]) / verdicts.NAME
    chance = random.Random(KILLS)
    torn = asked_twice = 0
    with serving(delay=0.02) as server:
        command = [sys.executable, ROOT / "judge.py", "ask", f"--base_url={server.url}", "--concurrency=3"]
        command += [f"--{name}={value}" for name, value in flags.items()]
        for kill in range(KILLS + 1):
            before = judged(path)
            start = len(server.asked)
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
            )
            wanted = len(server.told) + chance.randint(1, 5)
            while kill < KILLS and len(server.told) < wanted and process.poll() is None:
                time.sleep(0.001)
            if kill < KILLS:
                time.sleep(chance.uniform(0, 0.03))
                process.send_signal(signal.SIGKILL)
            _, err = process.communicate(timeout=120)
            time.sleep(0.05)
            assert not before & set(server.asked[start:])
            torn += path.exists() and not path.read_bytes().endswith(b"\n")
        assert process.returncode == 0, err.decode()
    asked_twice = len(server.asked) - len(set(server.asked))
    keys = Counter(verdicts.key_of(line) for line in verdicts.read(flags["output_dir"]))
    assert set(keys.values()) == {1} and len(keys) == prompts * 3
    assert asked_twice <= KILLS * 3  # only what was under way when a kill came: its reply reached nobody
    print(
        f"\n{KILLS} kills: {len(keys)} verdicts, each once; calls under way at a kill {asked_twice}, torn lines {torn}"
    )


def judged(path: Path) -> set[tuple[str, ...]]:
    """The answers, in order, of every whole line on the disk."""
    if not path.exists():
        return set()
    items = json.loads((path.parent / "items.json").read_text(encoding="utf-8"))["items"]
    texts = {(item["category"], item["number"]): item["answers"] for item in items}
    lines = map(json.loads, path.read_bytes().split(b"\n")[:-1])
    return {tuple(texts[line["category"], line["number"]][system] for system in line["order"]) for line in lines}


# --- As a user starts it ---


def run(*argv: str, key: str = KEY) -> subprocess.CompletedProcess:
    environment = {"PATH": os.environ["PATH"], "OPENAI_API_KEY": key, "NO_PROXY": "127.0.0.1", "HOME": "/nonexistent"}
    return subprocess.run([sys.executable, ROOT / "judge.py", *argv], capture_output=True, text=True, env=environment)


def test_the_exit_codes(tmp_path):
    flags = write_case(tmp_path, prompts=1)
    line = [f"--{name}={value}" for name, value in flags.items()]
    with serving(fault=lambda number: ("text", "不打分")) as server:
        address = f"--base_url={server.url}"
        assert run("ask", *line, address, "--mod=x").returncode == 2
        left = run("ask", *line, address, "--mode=faithful")
        assert left.returncode == 6
        told = "judge.py ask: error: 1 of 1 stay unjudged: 01part 1; run this again"
        assert left.stderr.splitlines()[-1].startswith(told)
        server.fault = lambda number: "401"
        left = run("ask", *line, address)
        assert left.returncode == 5 and "Traceback" not in left.stderr and KEY not in left.stderr + left.stdout
    Path(tmp_path / "ChatGPT.json").write_text("[]", encoding="utf-8")
    left = run("ask", *line, address)
    assert left.returncode == 3 and "no prompts" in left.stderr


def test_ctrl_c_ends_at_once_and_the_same_command_goes_on(tmp_path):
    flags = write_case(tmp_path, prompts=6)
    with serving(delay=0.2) as server:
        command = [sys.executable, ROOT / "judge.py", "ask", f"--base_url={server.url}"]
        command += [f"--{name}={value}" for name, value in flags.items()]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while not server.told:
            time.sleep(0.01)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        start = time.perf_counter()
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130 and time.perf_counter() - start < 3
        assert err.splitlines()[-1] == "judge.py ask: interrupted" and "Traceback" not in err
        kept = len(verdicts.read(flags["output_dir"]))
        server.delay = 0
        judge.ask(**flags, base_url=server.url)
    assert 1 <= kept < 18 and len(verdicts.read(flags["output_dir"])) == 18
