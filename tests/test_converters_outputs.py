"""What the converters leave behind: nothing half-written, nothing of others overwritten, one line for a wrong flag.

python -m pytest tests/test_converters_outputs.py
"""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from test_converters import (
    GOOD,
    PART1,
    ROOT,
    ROWS,
    TRANSLATED,
    coig,
    firefly,
    lines,
    psyqa,
    put,
    question,
    run,
    run_firefly,
    run_psyqa,
)

from utils.errors import ArgumentFault, DataFault, EnvironmentFault


def test_a_fault_leaves_earlier_outputs_as_they_were(tmp_path, monkeypatch):
    run_firefly(tmp_path, lines(*ROWS))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    source = put(tmp_path / "raw", "firefly-train-1.1M.jsonl", lines(*ROWS, *ROWS))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            firefly.main(input=str(source), output_dir=str(tmp_path / "out"))
    broken = put(tmp_path, "PsyQA_full.json", lines(question("问", "述", "答"), {}))
    (tmp_path / "out" / "report.json").unlink()
    with pytest.raises(DataFault, match=":2:"):
        psyqa.main(input=str(broken), output_dir=str(tmp_path / "out"))
    del before["report.json"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_nothing_shows_before_every_row_is_written(tmp_path, monkeypatch):
    def look(where: str, raw: dict):
        assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
        return psyqa_pieces(where, raw)

    psyqa_pieces = psyqa._pieces
    monkeypatch.setattr(psyqa, "_pieces", look)
    assert len(run_psyqa(tmp_path, question("问", "述", "答"), question("问", "述", "答"))) == 6


def test_an_input_that_changes_is_refused(tmp_path, monkeypatch):
    source = put(tmp_path, "PsyQA_full.json", lines(question("问", "述", "答")))

    def change(where: str, raw: dict):
        source.write_text(lines(question("新", "述", "答")), "utf-8")
        return pieces(where, raw)

    pieces = psyqa._pieces
    monkeypatch.setattr(psyqa, "_pieces", change)
    with pytest.raises(DataFault, match="changed while it was read"):
        run(psyqa, source, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_wrong_arguments_name_the_flag(tmp_path):
    source = str(put(tmp_path, "PsyQA_full.json", lines(question("问", "述", "答"))))
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    cases = [
        (firefly, "", "", "--input is missing; --output_dir is missing"),
        (coig, source, "", "--output_dir is missing"),
        (psyqa, str(tmp_path / "none"), str(tmp_path / "out"), "--input .*none: does not exist"),
        (coig, str(tmp_path / "empty"), str(tmp_path / "out"), f"--input .*empty: .* {PART1} or .*{TRANSLATED}"),
        (psyqa, str(tmp_path / "pipe"), str(tmp_path / "out"), "--input .*pipe: must be a raw file"),
        (psyqa, source, source, "--output_dir .*: is a file"),
        (psyqa, source, f"{source}/deeper", "--output_dir .*: is a file or lies in one"),
    ]
    for split, input, output_dir, said in cases:
        with pytest.raises(ArgumentFault, match=said):
            split.main(input=input, output_dir=output_dir)


def test_neither_the_input_nor_the_report_of_another_set_is_overwritten(tmp_path):
    content = lines(question("问", "述", "答"))
    named_like_an_output = put(tmp_path / "raw", "psyqa-0.json", content)
    with pytest.raises(ArgumentFault, match=r"--output_dir .*psyqa-0.json is the input"):
        psyqa.main(input=str(named_like_an_output), output_dir=str(tmp_path / "raw"))
    assert named_like_an_output.read_text("utf-8") == content
    run_firefly(tmp_path, lines(*ROWS))
    with pytest.raises(ArgumentFault, match=r"--output_dir .*report.json is not of psyQA"):
        psyqa.main(input=str(named_like_an_output), output_dir=str(tmp_path / "out"))
    assert not (tmp_path / "out" / "psyqa-0.json").exists()


def test_as_a_command_from_elsewhere(tmp_path):
    raw = put(tmp_path / "raw", "firefly-train-1.1M.jsonl", GOOD + '{"kind": "A"\n')
    command = [sys.executable, str(ROOT / "data" / "firefly" / "split.py"), "--output_dir", "out"]
    broken = subprocess.run([*command, "--input", "raw"], cwd=tmp_path, capture_output=True, text=True)
    assert (broken.returncode, broken.stdout) == (3, "")
    assert broken.stderr.startswith("split.py: error: raw/firefly-train-1.1M.jsonl:2:")
    assert broken.stderr.count("\n") == 1
    raw.write_text(GOOD, "utf-8")
    fine = subprocess.run([*command, "--input", "raw"], cwd=tmp_path, capture_output=True, text=True)
    assert (fine.returncode, fine.stderr) == (0, "")
    assert "1 rows in, 0 dropped" in fine.stdout
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    source = str(put(tmp_path, "PsyQA_full.json", lines(question("问", "述", "答"))))
    with pytest.raises(EnvironmentFault, match=r"--output_dir /proc/none/x: .* cannot be made"):
        psyqa.main(input=source, output_dir="/proc/none/x")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_takes_the_temporary_files_away(tmp_path, number):
    source = put(tmp_path / "raw", "firefly-train-1.1M.jsonl", lines(*ROWS) * 200_000)
    command = [sys.executable, str(ROOT / "data/firefly/split.py"), "--input", source, "--output_dir", tmp_path / "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not any(path.stat().st_size for path in (tmp_path / "out").glob(".*/*")):  # rows are being written
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.communicate()[1].splitlines()[-1] == f"split.py: ended by signal {int(number)}"
    assert process.returncode == 128 + number
    assert not list((tmp_path / "out").iterdir())
