"""Merging by hand-made numbers: the arithmetic, the shards, and what does not fit."""

import json

import pytest
import torch
from merge_cases import CONFIG, EMBED, HEAD, W, adapter, merged, run, small_base, tensors
from safetensors.torch import load_file, save_file

from utils import lora, merge, proof, runtime, weights
from utils.errors import EnvironmentFault, ModelFault


@pytest.fixture
def base(tmp_path):
    return small_base(tmp_path / "base")


@pytest.mark.parametrize(
    ("more", "scale"),
    [
        ({}, 4),
        ({"use_rslora": True}, 8 / 2**0.5),
        ({"lora_alpha": 128.0, "enable_lora": None, "merge_weights": False, "target_modules": ["q_proj"]}, 64),
        ({"r": 16, "rank_pattern": {"q_proj": 2}}, 4),
        ({"alpha_pattern": {r".*\.0\.self_attn\.q_proj": 6}}, 3),
        ({"alpha_pattern": {"proj": 6, "k_proj": 1}, "rank_pattern": {"v_proj": 7}}, 4),
        ({"r": 16, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 6}, "use_rslora": True}, 3 * 2**0.5),
    ],
)  # fmt: skip
def test_the_weight_grows_by_scale_b_a_and_the_others_stay(base, more, scale):
    before, after = load_file(base / "model.safetensors"), merged(base, adapter(base, config={**CONFIG, **more}))
    a, b = tensors().values()
    torch.testing.assert_close(after[W], before[W] + scale * b @ a)
    assert all(torch.equal(after[name], before[name]) for name in (EMBED, HEAD))


def test_the_sum_of_two_adapters_is_rounded_once(base):
    save_file({W: torch.ones(3, 4).bfloat16()}, base / "model.safetensors")
    small = {
        name: torch.full_like(tensor, 0.03) for name, tensor in tensors().items()
    }  # adds 0.0072, half a step is 0.0039
    torch.testing.assert_close(merged(base, adapter(base, small))[W], torch.full((3, 4), 1.0078).bfloat16())
    tiny = {name: tensor * 0.7 for name, tensor in small.items()}  # adds 0.0035: twice it is a step, once it is none
    twice = merged(base, adapter(base, tiny), adapter(base, tiny, folder="second"), output="twice")[W]
    assert torch.equal(twice, torch.full((3, 4), 1.0078).bfloat16())
    with pytest.raises(ModelFault, match="changes nothing"):
        run(base, adapter(base, tiny), output="once")


def test_a_transposed_weight_takes_the_transposed_sum(base):
    held = load_file(base / "model.safetensors")
    save_file({**held, W: held[W].T.contiguous()}, base / "model.safetensors")
    a, b = tensors().values()
    after = merged(base, adapter(base, config={**CONFIG, "fan_in_fan_out": True}))
    torch.testing.assert_close(after[W], (held[W] + 4 * b @ a).T)


def test_an_embedding_takes_lora_too(base):
    name = lora.PREFIX + EMBED.removesuffix(".weight")
    a, b = torch.randn(2, 5), torch.randn(4, 2)
    after = merged(base, adapter(base, {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}))
    torch.testing.assert_close(after[EMBED], load_file(base / "model.safetensors")[EMBED] + 4 * (b @ a).T)


def test_shards_are_indexed_and_a_bin_base_gives_the_same(base, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 90)
    monkeypatch.setattr(weights, "CHUNK", 16)
    first, held = merged(base, adapter(base)), load_file(base / "model.safetensors")
    index = json.loads((base.parent / "out/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {W, EMBED, HEAD} and index["metadata"]["total_size"] == 4 * (12 + 20 + 20)
    assert all((base.parent / "out" / name).exists() for name in index["weight_map"].values())
    (base / "model.safetensors").unlink()
    torch.save({W: held[W], EMBED: held[EMBED]}, base / "pytorch_model-00001-of-00002.bin")
    torch.save({HEAD: held[HEAD]}, base / "pytorch_model-00002-of-00002.bin", _use_new_zipfile_serialization=False)
    again = merged(base, adapter(base), output="again")
    assert again.keys() == first.keys() and all(torch.equal(again[name], tensor) for name, tensor in first.items())


def test_odd_and_small_tensors_are_aligned(base):
    odd = {
        "b.odd": torch.randn(3).bfloat16(),
        "a.wide": torch.randn(2),
        "c.flags": torch.tensor([True]),
        "d.one": torch.tensor(7),
    }
    save_file({**load_file(base / "model.safetensors"), **odd}, base / "model.safetensors")
    after = merged(base, adapter(base))
    assert all(torch.equal(after[name], tensor) for name, tensor in odd.items())
    data = (base.parent / "out/model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    starts = {name: header[name]["data_offsets"][0] % tensor.itemsize for name, tensor in after.items()}
    assert not any(starts.values()) and int.from_bytes(data[:8], "little") % 8 == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype_converts_and_auto_keeps_each_weights_own(base, dtype):
    held = load_file(base / "model.safetensors")
    save_file({**held, W: held[W].half(), "ids": torch.arange(3)}, base / "model.safetensors")
    (base / "config.json").write_text('{"vocab_size": 5, "torch_dtype": "float16"}')
    kept, after = merged(base, adapter(base)), merged(base, adapter(base), output="cast", dtype=dtype)
    assert (kept[W].dtype, kept[EMBED].dtype) == (torch.float16, torch.float32)
    assert {tensor.dtype for name, tensor in after.items() if name != "ids"} == {getattr(torch, dtype)}
    assert torch.equal(after[EMBED], held[EMBED].to(getattr(torch, dtype))) and after["ids"].dtype == torch.int64
    assert json.loads((base.parent / "cast/config.json").read_text())["torch_dtype"] == dtype


def test_the_report_has_hashes_counts_and_times(base):
    report = run(base, adapter(base))
    assert report["tensors"]["counts"] == {"changed": 1, "unchanged": 2} and list(report["tensors"]["changed"]) == [W]
    again = run(base, adapter(base), output="again")
    assert again["tensors"] == report["tensors"] and len(report["tensors"]["changed"][W]) == 64
    assert set(report["seconds"]) == {"arithmetic", "writing", "waiting_for_the_proof"}
    assert report["peak_anonymous_bytes"] > 1e6


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda block: block.add_(0.01), "rows are not base"),
        (lambda block: block.mul_(0).div_(0), "NaN"),
    ],
)
def test_wrong_arithmetic_does_not_pass_the_proof(base, monkeypatch, fault, message):
    right = merge.merged
    monkeypatch.setattr(merge, "merged", lambda *given: fault(right(*given).clone()) if given[1] else right(*given))
    with pytest.raises(ModelFault, match=message):
        run(base, adapter(base))
    assert not (base.parent / "out").exists() and not list(base.parent.glob(".part-*"))


def test_what_the_disk_holds_is_what_is_proven(base, monkeypatch):
    right = weights.ShardWriter.write
    monkeypatch.setattr(weights.ShardWriter, "write", lambda self, name, tensor: right(self, name, tensor + 1))
    with pytest.raises(ModelFault, match="not written as it is"):
        run(base, adapter(base))


def test_a_later_adapter_replaces_what_an_earlier_one_added(base):
    name = lora.PREFIX + EMBED.removesuffix(".weight")
    low_rank = {f"{name}.lora_embedding_A": torch.ones(2, 5), f"{name}.lora_embedding_B": torch.ones(4, 2)}
    whole = {lora.PREFIX + EMBED: torch.full((5, 4), 2.0)}
    assert torch.equal(merged(base, adapter(base, low_rank), adapter(base, whole))[EMBED], torch.full((5, 4), 2.0))
    after = merged(base, adapter(base, whole), adapter(base, low_rank), output="other")[EMBED]
    assert torch.equal(after, torch.full((5, 4), 2.0 + 4 * 2))


def test_the_proof_runs_where_a_model_fits_and_in_float32_where_it_can(monkeypatch):
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    free = {gpu: 3e9, cpu: 8e9}
    monkeypatch.setattr(runtime, "free_bytes", lambda device: free[device])
    assert proof.place(500_000_000, 1_000_000_000, [gpu, cpu]) == (gpu, "float32")
    assert proof.place(1_500_000_000, 3_000_000_000, [gpu, cpu]) == (cpu, "float32")
    assert proof.place(2_000_000_000, 2_200_000_000, [gpu, cpu]) == (gpu, "auto")
    with pytest.raises(EnvironmentFault, match=r"needs 17.5 GB of memory, 8.0 GB are free: --verify False"):
        proof.place(7_000_000_000, 14_000_000_000, [gpu, cpu])


@pytest.mark.parametrize("files", [("memory.max", "memory.current"), ("limit_in_bytes", "usage_in_bytes")])
def test_a_containers_limit_counts_and_its_cache_of_files_is_free(tmp_path, monkeypatch, files):
    monkeypatch.setattr(runtime, "_CGROUPS", [(str(tmp_path), *files)])
    whole = runtime.free_bytes(torch.device("cpu"))
    for name, text in zip(
        (*files, "memory.stat"), ("90000000\n", "80000000\n", "anon 9\nactive_file 5\ninactive_file 7\n")
    ):
        (tmp_path / name).write_text(text)
    assert runtime.free_bytes(torch.device("cpu")) == 10_000_012 < whole
    (tmp_path / files[0]).write_text("max\n")
    assert runtime.free_bytes(torch.device("cpu")) > 10_000_012
