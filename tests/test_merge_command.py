"""merge_lora.py as a command: what it leaves behind, twice, killed, without room, and how much memory it takes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from merge_cases import EMBED, HEAD, W, merge_flags, save_adapter, tensors, tokenizer
from safetensors.torch import load_file, save_file

import merge_lora
from utils import files, lora, merge, weights
from utils.errors import ArgumentFault, EnvironmentFault, ModelFault

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def flags(tmp_path) -> dict:
    return merge_flags(tmp_path)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith((".", "out")))


def test_what_a_merge_leaves(flags, tmp_path, capsys):
    base = Path(flags["base_model"])
    (base / "generation_config.json").write_text('{"max_length": 9}')
    (base / "tokenizer_config.json").write_text('{"of": "base"}')
    merge_lora.main(**flags)
    assert "1 of 3 tensors changed" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json", "generation_config.json", "merge_report.json", "model.safetensors", "run.json", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    report = json.loads((tmp_path / "out/merge_report.json").read_text())
    assert report["forward"] is None and report["seconds"]["all"] > 0
    assert left(tmp_path) == ["out"] and (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_the_adapters_tokenizer_is_taken_whole_and_never_mixed_with_the_bases(flags, tmp_path):
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        Path(flags["base_model"], name).write_text("{}")
    text = json.dumps({"model": {"vocab": [[f"piece {number}", 0.0] for number in range(5)]}})
    Path(flags["lora_model"], "tokenizer.json").write_text(text)
    merge_lora.main(**flags)
    assert (tmp_path / "out/tokenizer.json").read_text() == text
    assert not (tmp_path / "out/tokenizer_config.json").exists()


def test_the_wrong_ids_of_early_llama_conversions_are_put_right(flags, tmp_path):
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}
    norm = {"model.norm.weight": torch.ones(4)}
    path = Path(flags["base_model"], "model.safetensors")
    save_file({**load_file(path), **norm}, path)
    Path(flags["base_model"], "config.json").write_text(
        json.dumps({"model_type": "llama", "num_hidden_layers": 1, **ids})
    )
    Path(flags["base_model"], "generation_config.json").write_text(json.dumps({**ids, "pad_token_id": 0}))
    merge_lora.main(**flags)
    for name in ("config.json", "generation_config.json"):
        held = json.loads((tmp_path / "out" / name).read_text())
        assert (held["bos_token_id"], held["eos_token_id"], held["pad_token_id"]) == (1, 2, None)


def test_the_same_merge_again_does_nothing_and_another_is_refused(flags, tmp_path, capsys):
    merge_lora.main(**flags)
    before = (tmp_path / "out/model.safetensors").stat().st_mtime_ns
    merge_lora.main(**flags)
    assert "already complete" in capsys.readouterr().out
    for other in (
        {"dtype": "float16"},
        {"lora_model": str(save_adapter(tmp_path / "b", {**tensors(), "c.weight": torch.ones(1)}))},
    ):
        with pytest.raises(ModelFault, match="not empty"):
            merge_lora.main(**{**flags, **other})
    assert (tmp_path / "out/model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("kept", [None, 30, 200])
def test_a_finished_merge_that_has_lost_weights_is_not_called_complete(flags, tmp_path, kept):
    merge_lora.main(**flags)
    path = tmp_path / "out/model.safetensors"
    data = path.read_bytes()
    path.unlink() if kept is None else path.write_bytes(data[:kept])
    with pytest.raises(ModelFault, match=f"{tmp_path}/out"):
        merge_lora.main(**flags)
    save_file({W: torch.ones(3, 4)}, path)
    with pytest.raises(ModelFault, match="not those that were merged"):
        merge_lora.main(**flags)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lora_model": ""}, "--lora_model is missing"),
        ({"lora_model": "nowhere,else"}, "--lora_model: nowhere does not exist; --lora_model: else does not exist"),
        ({"dtype": "int8"}, '--dtype: "int8" is not one of auto, float32, bfloat16, float16'),
        ({"output_dir": "BASE"}, "--output_dir: .* is also --base_model"),
        ({"output_dir": "ADAPTER"}, "--output_dir: .* is also --lora_model"),
        ({"output_dir": ""}, "--output_dir is missing"),
    ],
)
def test_wrong_flags_are_named(flags, wrong, message):
    given = {
        key: {"BASE": flags["base_model"], "ADAPTER": flags["lora_model"]}.get(value, value)
        for key, value in wrong.items()
    }
    with pytest.raises(ArgumentFault, match=message):
        merge_lora.main(**{**flags, **given})


def test_a_folder_with_a_comma_and_a_blank_in_its_name_is_one_adapter(flags, tmp_path):
    odd = tmp_path / "one, two"
    Path(flags["lora_model"]).rename(odd)
    merge_lora.main(**{**flags, "lora_model": str(odd)})
    assert (tmp_path / "out").exists()


PROGRAM = """
import os, sys
sys.argv = ["merge_lora.py", *sys.argv[1:]]
from utils import cli, files, weights
import merge_lora
{}
cli.run(merge_lora.main)
"""
KILLS = {
    "in the weights": """
right, count = weights.ShardWriter.write, []
def die(*given):
    count.append(1)
    return os.kill(os.getpid(), 9) if len(count) == 2 else right(*given)
weights.ShardWriter.write = die
""",
    "before the rename": """
right = os.replace
os.replace = lambda old, new: os.kill(os.getpid(), 9) if os.path.isdir(old) else right(old, new)
""",
    "after the rename": """
right = os.replace
def die(old, new):
    folder = os.path.isdir(old)
    right(old, new)
    folder and os.kill(os.getpid(), 9)
os.replace = die
""",
}


def command(code: str, flags: dict) -> subprocess.CompletedProcess:
    """merge_lora.py in a process of its own, after `code`."""
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    program = [sys.executable, "-c", PROGRAM.format(code), *words]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("moment", KILLS)
def test_killed_at_any_moment_there_is_no_output_or_a_whole_one(flags, tmp_path, moment):
    assert command(KILLS[moment], flags).returncode == -signal.SIGKILL
    assert left(tmp_path) == (["out"] if moment.startswith("after") else [".part-out"])
    merge_lora.main(**flags)
    assert left(tmp_path) == ["out"]
    report = json.loads((tmp_path / "out/merge_report.json").read_text())
    assert report["tensors"]["counts"] == {"changed": 1, "unchanged": 2}
    assert {name: tensor.shape for name, tensor in load_file(tmp_path / "out/model.safetensors").items()} == {
        W: (3, 4), EMBED: (5, 4), HEAD: (5, 4)
    }  # fmt: skip


def test_a_fault_is_one_line_and_exit_code_4(flags, tmp_path):
    Path(flags["base_model"], "model.safetensors").write_bytes(b"cut")
    done = command("", flags)
    assert done.returncode == 4 and not done.stdout and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("merge_lora.py: error: ") and "model.safetensors cannot be read" in done.stderr


def test_two_processes_do_not_write_one_output(flags, tmp_path):
    with files.new_folder(tmp_path / "out", 0), pytest.raises(EnvironmentFault, match="another process is writing"):
        merge_lora.main(**flags)


@pytest.fixture
def little_disk(tmp_path, monkeypatch):
    """A disk of 64 KB that says it is large; where none can be mounted, writing that fails as a full one does."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = (
        os.geteuid() == 0 and not subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]).returncode
    )
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
    if not mounted:
        monkeypatch.setattr(
            weights.ShardWriter, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
        )
    yield place
    if mounted:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_leaves_nothing_behind_and_the_rest_as_it_was(flags, little_disk):
    earlier = little_disk / "earlier"
    earlier.write_text("good")
    base = Path(flags["base_model"])
    held = load_file(base / "model.safetensors")
    save_file({**held, "model.big.weight": torch.ones(64, 1024)}, base / "model.safetensors")
    with pytest.raises(EnvironmentFault, match=r"the disk of .* is full"):
        merge_lora.main(**{**flags, "output_dir": str(little_disk / "out")})
    assert [path.name for path in little_disk.iterdir()] == ["earlier"] and earlier.read_text() == "good"


def test_too_little_room_is_known_at_the_start(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 0, 100))
    monkeypatch.setattr(merge, "write", None)
    with pytest.raises(EnvironmentFault, match=r"0.00 GB are needed, 0.00 GB are free"):
        merge_lora.main(**flags)
    assert not left(tmp_path)


@pytest.mark.parametrize("fault", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file")])
def test_an_output_that_cannot_be_made_is_named(flags, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(files, "_take", lambda _: (_ for _ in ()).throw(fault))
    with pytest.raises(EnvironmentFault, match=f"--output_dir: {tmp_path}/out cannot be made: {fault.strerror}"):
        merge_lora.main(**flags)


def test_a_disk_mounted_at_the_output_is_refused(flags, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path).endswith("out"))
    with pytest.raises(ModelFault, match="where a disk is mounted"):
        merge_lora.main(**flags)


MEASURE = """
import threading, time
import torch, safetensors.torch, tqdm, sentencepiece
from utils import merge, record, hub
def anonymous():
    lines = open('/proc/self/status').read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('RssAnon')) / 1024
start, seen = anonymous(), []
def watch():
    while True:
        seen.append(anonymous())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
right = merge_lora.main
def measured(base_model: str = '', lora_model: str = '', output_dir: str = '', verify: bool = True):
    right(base_model, lora_model, output_dir, verify=verify)
    print('anonymous MB:', max(seen) - start)
merge_lora.main = measured
"""


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_memory_is_that_of_a_tensor_not_of_the_model(tmp_path, suffix):
    """A model of 330 MB whose largest tensor has 20: merged within 180 MB above the interpreter."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    side, layers = 3200, 16
    names = [f"model.layers.{number}.self_attn.q_proj" for number in range(layers)]
    held = {f"{name}.weight": torch.full((side, side), 0.5, dtype=torch.bfloat16) for name in names}
    if suffix == "bin":
        torch.save(held, base / "pytorch_model.bin")
    else:
        save_file(held, base / "model.safetensors")
    (base / "config.json").write_text("{}")
    (base / "tokenizer.json").write_text(tokenizer(5))
    a, b = torch.ones(8, side), torch.ones(side, 8)
    save_adapter(
        adapter,
        {f"{lora.PREFIX}{name}.lora_{x}.weight": (a if x == "A" else b).clone() for name in names for x in "AB"},
        {"r": 8, "lora_alpha": 8},
    )
    flags = {"base_model": base, "lora_model": adapter, "output_dir": tmp_path / "out", "verify": False}
    done = command(MEASURE, flags)
    assert done.returncode == 0, done.stderr
    memory = float(re.search(r"anonymous MB: (\S+)", done.stdout)[1])
    assert memory < 180, memory
    report = json.loads((tmp_path / "out/merge_report.json").read_text())
    assert report["tensors"]["counts"]["changed"] == layers
    assert (
        abs(sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")) / 2 / side**2 - layers) < 0.01
    )
