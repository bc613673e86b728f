"""The cache of tables: found by content, proved whole, shared by processes."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_rows
from tiny_models import ROWS

from utils import cache, dataset
from utils.errors import EnvironmentFault

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("DREAMERGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(path: str) -> list[dict]:
    return list(dataset.load_rows(path)[0])


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "no table", "no info", "half info"])
def test_a_damaged_table_is_noticed_and_built_again(own_cache, tmp_path, capsys, damage):
    path = write_rows(tmp_path / "a.json", ROWS)
    before = load(path)
    (entry,) = (entry for entry in own_cache.iterdir() if entry.is_dir())
    table, info = entry / cache.TABLE, entry / cache.INFO
    data = table.read_bytes()
    {
        "flip": lambda: table.write_bytes(data[:900] + bytes([data[900] ^ 1]) + data[901:]),
        "cut": lambda: table.write_bytes(data[:-100]),
        "empty": lambda: table.write_bytes(b""),
        "no table": table.unlink,
        "no info": info.unlink,
        "half info": lambda: info.write_text(info.read_text()[:30]),
    }[damage]()
    assert load(path) == before
    assert "is damaged: it is built again" in capsys.readouterr().out
    assert load(path) == before and "damaged" not in capsys.readouterr().out


def test_what_a_killed_process_left_is_cleared(own_cache, tmp_path):
    path = write_rows(tmp_path / "a.json", ROWS)
    before = load(path)
    (entry,) = (entry for entry in own_cache.iterdir() if entry.is_dir())
    entry.rename(entry.with_name(f".{entry.name}"))
    assert load(path) == before
    assert [entry.name] == [one.name for one in own_cache.iterdir() if one.is_dir()]


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("DREAMERGPT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "dreamergpt"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.folder() == Path("/x/dreamergpt")
    monkeypatch.setenv("DREAMERGPT_CACHE", "/y")
    assert cache.folder() == Path("/y")


def test_a_cache_that_cannot_be_written_names_the_variable(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DREAMERGPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(EnvironmentFault, match=r"cannot be written: .*DREAMERGPT_CACHE"):
        dataset.load_rows(write_rows(tmp_path / "a.json", ROWS))


READER = """
import sys
sys.path.insert(0, {root!r})
from utils import dataset
plain = dataset.read_rows
def slow(name, unused):
    print("reading", flush=True)
    for row in plain(name, unused):
        import time; time.sleep({pause})
        yield row
dataset.read_rows = slow
print(len(dataset.load_rows({path!r})[0]), flush=True)
"""


def test_of_two_processes_one_reads_and_the_other_waits_and_a_killed_one_leaves_no_lock(own_cache, tmp_path):
    path = write_rows(tmp_path / "a.json", ROWS)

    def start(pause: float) -> subprocess.Popen:
        code = READER.format(root=str(ROOT), path=path, pause=pause)
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    with start(60) as killed:
        assert killed.stdout.readline() == "reading\n"
        with start(0.05) as one, start(0.05) as other:
            time.sleep(0.1)
            killed.send_signal(signal.SIGKILL)
            outputs = sorted(process.communicate(timeout=120)[0] for process in (one, other))
    assert outputs == ["8\n", "reading\n8\n"]


def test_a_full_disk_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAMERGPT_CACHE", str(tmp_path))

    def build(target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(EnvironmentFault, match=f"the disk of {tmp_path} is full"):
        cache.table("name", build)
    assert [path.name for path in tmp_path.iterdir()] == ["name.lock"]
