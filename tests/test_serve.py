"""Where the page is served, and that nobody but the command line says so."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from test_web import Conversation, chat_data, free_port, launch

from utils import cli, gate, web

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def taken():
    """A port that another page has."""
    page, port, _ = launch(Conversation())
    yield port
    page.close()


def test_the_page_is_served_on_ipv6_too():
    page, port, _ = launch(Conversation(), name="::1")
    try:
        assert httpx.get(f"http://[::1]:{port}/config").status_code == 200
        assert httpx.get(f"http://[::1]:{port}/config", headers={"host": "evil"}).status_code == 400
    finally:
        page.close()


def test_a_port_that_is_lost_while_the_model_loads_is_the_environments_fault(taken, monkeypatch, capsys):
    page = web.build(Conversation(), "Test", [], str)
    monkeypatch.setattr(sys, "argv", ["generate.py"])

    def main() -> None:
        web.serve(page, "127.0.0.1", taken, False, [], gate.in_front("127.0.0.1", False))

    with pytest.raises(SystemExit) as end:
        cli.run(main, [])
    assert end.value.code == 5
    assert capsys.readouterr().err == f"generate.py: error: Address already in use: port {taken}\n"


HOSTILE = {
    "GRADIO_ALLOWED_PATHS": "/", "GRADIO_ROOT_PATH": "/evil", "GRADIO_VIBE_MODE": "1", "GRADIO_WATCH_DIRS": "/",
    "GRADIO_MCP_SERVER": "True", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SHARE": "True", "GRADIO_DEBUG": "x",
    "GRADIO_TEMP_DIR": "/", "GRADIO_ANALYTICS_ENABLED": "True", "http_proxy": "http://127.0.0.1:9",
}  # fmt: skip
SERVE = """
import sys
sys.path[:0] = sys.argv[2:]
import test_web
from utils import cli, gate, web
def main():
    page = web.build(test_web.Conversation(), "Test", [], str)
    web.serve(page, "127.0.0.1", int(sys.argv[1]), False, [], gate.in_front("127.0.0.1", False))
cli.run(main, [])
"""


@pytest.mark.parametrize("shared, left", [(True, 143), (False, -15)])
def test_the_tunnel_of_a_shared_page_does_not_outlive_it(shared, left):
    """SIGTERM lets Python end in order there, so that what was registered for the end is run."""
    code = f"""
import atexit, sys, types, unittest.mock
sys.path[:0] = [{str(ROOT)!r}]
sys.modules["gradio"] = unittest.mock.MagicMock()
from utils import web
atexit.register(print, "tunnel ended")
print("up", flush=True)
web._stay(types.SimpleNamespace(share_url={"https://x" if shared else None!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    time.sleep(0.3)
    process.terminate()
    assert process.communicate(timeout=20)[0] == ("tunnel ended\n" if shared else "")
    assert process.returncode == left


def test_the_environment_opens_nothing_and_a_signal_ends_all(tmp_path):
    """No file of this machine, no editor of its code, no other address; a proxy for the network is not in the way.

    Then SIGTERM, with an answer under way: the screen has had one line."""
    (tmp_path / "secret").write_text("secret")
    port, environment = free_port(), {**os.environ, **HOSTILE}
    command = [sys.executable, "-c", SERVE, str(port), str(ROOT), str(ROOT / "tests")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert next(iter(process.stdout), "") == f"the page is at http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as http:
            assert http.get(f"/gradio_api/file={tmp_path / 'secret'}").status_code == 403
            assert http.get("/config").json()["root"] == f"http://127.0.0.1:{port}"
            assert http.get("/gradio_api/vibe-code").status_code == 403
            event = http.post("/gradio_api/call/chat", json={"data": chat_data("slow")}).json()["event_id"]
            with http.stream("GET", f"/gradio_api/call/chat/{event}") as lines:
                assert next(line for line in lines.iter_lines() if "generating" in line)
                process.terminate()
                assert process.wait(5) == -15
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.communicate(timeout=20)
