"""Activations that are recomputed where they do not fit: when, with which figures, and that nothing else changes."""

import re
from pathlib import Path

import pytest
import torch
from conftest import ALL_LINEAR, both_families
from datasets import Dataset
from tiny_models import tiny_llama
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from utils import fast, memory, models, neftune, runtime, training
from utils.batching import collate, collate_packed, parts_of
from utils.encode import IGNORED

CPU = torch.device("cpu")
FLAGS = {"dtype": "auto", "lora_dropout": 0.3, "load_8bit": False, "load_4bit": False, "fast": True}
FLAGS |= {"micro_batch_size": 4, "cutoff_len": 256}
ROWS = Dataset.from_dict({"length": [200] * 8, "supervised": [100] * 8})
LINE = (
    r"activations are recomputed, which is slower: with all of them kept the run would take ([\d.]+) GB of ([\d.]+) GB "
)
LINE += r"free, so it takes ([\d.]+) GB\n"


@pytest.fixture
def empty(base, family):
    return models.add_lora(models.empty_base(base), 8, 16, 0.3, ALL_LINEAR[family])


@both_families
def test_it_is_decided_by_the_estimate_and_said_with_the_figures(empty, monkeypatch, capsys):
    kept, less = (sum(memory.estimate(empty, ROWS, FLAGS, CPU, way).values()) for way in (False, True))
    assert less < kept
    held = [kept + 1e6, kept - 1e6]
    monkeypatch.setattr(memory, "free_bytes", lambda *_: held.pop(0))
    assert not memory.must_recompute(empty, ROWS, FLAGS, CPU)
    assert capsys.readouterr().out == ""
    assert memory.must_recompute(empty, ROWS, FLAGS, CPU)
    said = [float(figure) for figure in re.fullmatch(LINE, capsys.readouterr().out).groups()]
    assert said == pytest.approx([kept / 1e9, (kept - 1e6) / 1e9, less / 1e9], abs=0.02)  # libraries grow by the minute


@pytest.mark.parametrize("load", ["load_8bit", "load_4bit", "neither"])
def test_a_quantised_base_on_a_gpu_keeps_what_fits(empty, load, monkeypatch):
    """It used to recompute always. What the device has is tried, no GPU is needed; each process has one of its own."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    gpu, flags = torch.device("cuda"), {**FLAGS, load: True}
    kept = sum(memory.estimate(empty, ROWS, flags, gpu).values())
    for free, expected in ((kept, False), (kept - 1, True)):
        monkeypatch.setattr(runtime, "free_bytes", lambda device, free=free: free)
        assert memory.must_recompute(empty, ROWS, flags, gpu) == expected


def test_processes_share_a_cpus_memory(empty, monkeypatch):
    parts = memory.estimate(empty, ROWS, FLAGS, CPU)
    room = int(1.5 * (sum(parts.values()) - parts["libraries"]))  # what is held already is no longer free
    monkeypatch.setattr(runtime, "free_bytes", lambda device: room)
    alone = memory.free_bytes(CPU)
    assert not memory.must_recompute(empty, ROWS, FLAGS, CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert alone - memory.free_bytes(CPU) == pytest.approx(room / 2, rel=0.1)
    assert memory.must_recompute(empty, ROWS, FLAGS, CPU)


def test_a_model_that_cannot_is_left_alone(empty, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda *_: 0)
    monkeypatch.setattr(type(empty.get_base_model()), "supports_gradient_checkpointing", False)
    assert not memory.must_recompute(empty, ROWS, FLAGS, CPU)


def rows(lengths: list[int]) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 390, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": row, "labels": [IGNORED] * (len(row) // 3) + row[len(row) // 3 :]} for row in ids]


def prepared(base, targets, is_fast: bool, recompute: bool, bits: int = 32):
    """(model with a LoRA that does something, dropout and noise; its head)"""
    torch.manual_seed(1)
    model = models.prepare_for_training(
        models.load_base(base, bits == 8, bits == 4, "float32", CPU), recompute=recompute
    )
    model = models.add_lora(model, 4, 8, 0.3, targets, is_fast)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.05)
    head = fast.prepare(model, CPU) if is_fast else None
    neftune.add_noise(model, 5.0)
    return model.train(), head


@both_families
@pytest.mark.parametrize(("is_fast", "bits"), [(True, 32), (False, 32), (True, 8), (True, 4)])
def test_losses_and_gradients_are_the_same_bit_for_bit(base, family, is_fast, bits):
    found = []
    for recompute in (False, True):
        model, head = prepared(base, ALL_LINEAR[family], is_fast, recompute, bits)
        passes, layers = [], "model.layers" if family == "llama" else "transformer.h"
        layer = model.get_submodule(f"base_model.model.{layers}.1.mlp")
        layer.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        packed = is_fast and fast.can_pack(model)
        chunks = [rows([9, 31, 5]), rows([40, 12])]
        batches = [collate_packed(chunk) if packed else collate(chunk, 0) for chunk in chunks]
        parts = [part for batch in batches for part in (parts_of(batch, 40) if is_fast else [batch])]
        torch.manual_seed(2)
        losses = []
        for part in parts:
            loss, _ = training.label_loss(model, part, head)
            loss.backward()
            losses.append(loss.detach())
        gradients = [tensor.grad for tensor in model.parameters() if tensor.requires_grad]
        found.append([*losses, *gradients, torch.rand(3)])  # and the next random numbers
        assert len(passes) == len(parts) * (2 if recompute else 1)
    assert len(found[0]) == len(found[1]) > 4
    assert all(torch.equal(one, other) for one, other in zip(*found))
    assert any(tensor.any() for tensor in found[0][len(parts) : -1])


@both_families
def test_a_whole_run_ends_with_the_same_bytes(quick, train, tmp_path, monkeypatch, capsys):
    written = []
    for free in (memory.free_bytes, lambda *_: 0):
        monkeypatch.setattr(memory, "free_bytes", free)
        out = tmp_path / str(len(written))
        train(**{**quick, "output_dir": str(out), "lora_dropout": 0.3, "neftune_noise_alpha": 5.0})
        written.append((out / "adapter_model.safetensors").read_bytes())
        assert len(re.findall(LINE, capsys.readouterr().out)) == len(written) - 1
    assert written[0] == written[1]


def test_the_dry_run_says_so(quick, train, monkeypatch, capsys):
    monkeypatch.setattr(memory, "free_bytes", lambda *_: 10_000_000)
    train(**quick, dry_run=True)
    less = re.search(LINE, out := capsys.readouterr().out).group(3)
    assert f"\nmemory: {less} GB on cpu (" in out and not Path(quick["output_dir"]).exists()


def peak_of(step) -> int:
    """Bytes of tensors at the worst moment of step(), beside those that were there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    tree, changes = list(seen.profiler.kineto_results.experimental_event_tree()), []
    while tree:
        event = tree.pop()
        tree += event.children
        if event.tag == _EventType.Allocation:
            changes.append((event.start_time_ns, event.typed[1].alloc_size))
    held = most = 0
    for _, size in sorted(changes):
        held += size
        most = max(most, held)
    return most


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "plain"])
def test_the_estimate_is_what_a_step_takes(tmp_path, is_fast, recompute):
    base = tiny_llama(tmp_path / "base", layers=8)
    model, head = prepared(base, ALL_LINEAR["llama"], is_fast, recompute)
    chosen = rows([200] * 4)
    (batch,) = parts_of(collate_packed(chosen), 1024) if is_fast else [collate(chosen, 0)]
    model(**{name: value for name, value in batch.items() if name != "labels"})  # what is made once
    peak = peak_of(lambda: training.label_loss(model, batch, head)[0].backward())
    encoded = Dataset.from_dict({"length": [200] * 4, "supervised": [134] * 4})
    empty = models.add_lora(models.empty_base(base), 4, 8, 0.3, ALL_LINEAR["llama"])
    estimate = memory.estimate(empty, encoded, {**FLAGS, "fast": is_fast}, CPU, recompute)
    between = memory.KEEPING if is_fast else memory.ALLOCATOR  # which the process takes, and no tensor has
    assert 0.75 < peak / ((estimate["activations"] + estimate["logits"]) / between) < 1.05
