"""Noise on the embeddings: each row's by its own length, however it stands in its batch; in training alone."""

import json
from pathlib import Path

import pytest
import torch
from conftest import both_families

from utils import fast, models, neftune
from utils.batching import collate, collate_packed, parts_of
from utils.encode import IGNORED

LENGTHS = [9, 31, 5, 17, 12, 40]
ALPHA, TIMES = 5.0, 30


def rows(lengths: list[int]) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 390, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": row, "labels": [IGNORED, *row[1:]]} for row in ids]


def noisy(base, way: str):
    """(model with noise, list that every forward pass adds (clean, noisy) embeddings to)"""
    torch.manual_seed(0)
    model = models.add_lora(models.load_base(base, False, False, "auto", torch.device("cpu")), 4, 8, 0.0, ("q_proj",))
    seen, embedding = [], model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, given, output: seen.append([output]) or None)
    if "packed" in way:
        fast.prepare(model, torch.device("cpu"))
    neftune.add_noise(model, ALPHA)
    embedding.register_forward_hook(lambda module, given, output: seen[-1].append(output) or None)
    return model.train(), seen


def batches(way: str) -> list[dict]:
    packed = collate_packed(rows(LENGTHS))
    return {
        "packed": [packed],
        "packed, in parts": list(parts_of(packed, 40)),
        "padded": [collate(rows(LENGTHS), 0)],
        "padded, in parts": list(parts_of(collate(rows(LENGTHS), 0), 50)),
    }[way]


def noises(base, way: str) -> list[torch.Tensor]:
    """The noise of each row, (times, tokens, channels), padding left out."""
    model, seen = noisy(base, way)
    by_row: list[list[torch.Tensor]] = [[] for _ in LENGTHS]
    for _ in range(TIMES):
        row = 0
        for batch in batches(way):
            given = {name: value for name, value in batch.items() if name != "labels"}
            seen.clear()
            with torch.no_grad():
                model(**given, use_cache=False)
            ((clean, disturbed),) = seen
            lengths = batch["row_lengths"] if "row_lengths" in batch else batch["attention_mask"].sum(1).tolist()
            noise = disturbed - clean
            apart = noise[0].split(lengths) if "row_lengths" in batch else noise
            for length, one in zip(lengths, apart, strict=True):
                by_row[row].append(one[:length])
                row += 1
    return [torch.stack(one) for one in by_row]


@pytest.mark.parametrize("way", ["packed", "packed, in parts", "padded", "padded, in parts"])
def test_a_rows_noise_is_uniform_in_the_bounds_of_its_own_length(base, way):
    for length, noise in zip(LENGTHS, noises(base, way), strict=True):
        assert noise.shape == (TIMES, length, 64)
        most = ALPHA / (length * 64) ** 0.5
        assert 0.99 * most < noise.abs().max() < 1.0001 * most
        assert noise.std().item() == pytest.approx(most / 3**0.5, rel=0.03)
        assert abs(noise.mean().item()) < 5 * most / 3**0.5 / noise.numel() ** 0.5
        below = (noise < -most / 2).double().mean().item()  # a quarter of what is uniform
        assert below == pytest.approx(0.25, abs=0.03)
        assert len(noise.unique()) > 0.9 * noise.numel()  # of its own for every number, every time


def test_an_evaluation_has_none_and_an_alpha_of_0_none_at_all(base):
    model, seen = noisy(base, "padded")
    with torch.no_grad():
        model.eval()(**{key: value for key, value in batches("padded")[0].items() if key != "labels"})
    assert torch.equal(*seen[-1])
    plain = models.load_base(base, False, False, "auto", torch.device("cpu"))
    neftune.add_noise(plain, 0.0)
    assert not plain._forward_pre_hooks and not plain.get_input_embeddings()._forward_hooks


def test_half_precision_stays_what_it_is(base):
    model, seen = noisy(base, "packed")
    given = {key: value for key, value in batches("packed")[0].items() if key != "labels"}
    with torch.no_grad():
        model.to(torch.bfloat16)(**given, use_cache=False)
    assert seen[-1][1].dtype == torch.bfloat16 and not torch.equal(*seen[-1])


@both_families
def test_a_run_trains_with_it_and_validates_without(quick, train, tmp_path):
    lines = []
    for alpha in (0.0, 5.0):
        out = tmp_path / str(alpha)
        train(**{**quick, "output_dir": str(out), "lora_dropout": 0.0, "neftune_noise_alpha": alpha})
        lines.append([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()])
        assert json.loads((Path(out) / "run.json").read_text())["settings"]["neftune_noise_alpha"] == alpha
    (first, step, *_), (same, other, *_) = lines
    assert first["eval_loss"] == same["eval_loss"] and step["loss"] != other["loss"]
    assert other["loss"] == pytest.approx(step["loss"], rel=0.5)
