"""verdicts.jsonl while a judge is asked: torn lines, lines of others, two runs at once, a full disk.

python -m pytest tests/test_ask_journal.py
"""

from pathlib import Path

import pytest
from judges import serving, write_case
from test_ask import lines, once, outcome, quick_and_keyed  # noqa: F401 (a fixture for every test here too)

import judge
from utils import journal, judging, verdicts
from utils.errors import DataFault, EnvironmentFault


def test_a_line_torn_at_any_byte_is_cut_off_and_asked_again(tmp_path):
    flags = write_case(tmp_path, prompts=1)
    with serving() as server:
        outcome(flags, server, concurrency=1)
        path = Path(flags["output_dir"]) / verdicts.NAME
        whole = path.read_bytes()
        last = whole.rindex(b"\n", 0, -1) + 1
        for end in (*range(last, len(whole) - 1, 23), len(whole) - 1):  # the newline itself is the last byte to be lost
            path.write_bytes(whole[:end])
            with verdicts.open_journal(flags["output_dir"]):
                assert len(verdicts.read(flags["output_dir"])) == 2
            assert path.read_bytes() == whole[:last]
        server.asked.clear()
        assert outcome(flags, server) is None
        assert len(server.asked) == 1
    assert once(flags)


@pytest.mark.parametrize("broken", [b"{]\n", b"[]\n", b'{"judge": "a"}\n', b"\n", b"\xff\xfe\n"])
def test_a_line_that_is_not_ours_is_named(broken, tmp_path):
    flags = write_case(tmp_path, prompts=1)
    with serving() as server:
        outcome(flags, server)
        path = Path(flags["output_dir"]) / verdicts.NAME
        first, rest = path.read_bytes().split(b"\n", 1)
        path.write_bytes(first + b"\n" + broken + rest)
        with pytest.raises(DataFault, match=r"verdicts.jsonl:2: not a verdict"):
            judge.ask(**flags, base_url=server.url)


def test_two_runs_on_one_folder_do_not_mix(tmp_path):
    flags = write_case(tmp_path, prompts=1)
    judging.pin(flags["output_dir"], {}, judging.read_items({"a": f"{tmp_path}/ChatGPT.json"}, flags["test_data"]), 42)
    with verdicts.open_journal(flags["output_dir"]), pytest.raises(EnvironmentFault, match="another run"):
        verdicts.open_journal(flags["output_dir"])
    verdicts.open_journal(flags["output_dir"])  # and a lock dies with its holder


def test_a_full_disk_ends_the_run_and_what_was_written_stays(tmp_path, monkeypatch):
    flags = write_case(tmp_path)
    real, count = journal.os.fsync, []

    def full(handle):
        count.append(handle)
        if len(count) > 4:
            raise OSError(28, "No space left on device")
        real(handle)

    with serving() as server:
        judging.pin(flags["output_dir"], *pinned(flags))
        monkeypatch.setattr(journal.os, "fsync", full)
        with pytest.raises(EnvironmentFault, match=r"the disk of .*verdicts.jsonl is full"):
            judge.ask(**flags, base_url=server.url)
        monkeypatch.setattr(journal.os, "fsync", real)
        assert 4 <= len(lines(flags)) < 12
        assert outcome(flags, server) is None
    assert once(flags)


def pinned(flags: dict) -> tuple:
    answers = dict(part.split("=") for part in flags["answers"].split(","))
    return answers, judging.read_items(answers, flags["test_data"]), 42
