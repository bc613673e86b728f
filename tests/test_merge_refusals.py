"""What a merge refuses, by name and before anything is written."""

import json
import re

import pytest
import torch
from merge_cases import CONFIG, EMBED, HEAD, NAME, W, adapter, run, small_base, tensors
from safetensors.torch import load_file, save_file

from utils import lora, merge, models, planning, weights
from utils.errors import ModelFault

PARTS = "model.layers.{}.self_attn.q_proj"


@pytest.fixture
def base(tmp_path):
    return small_base(tmp_path / "base")


def refused(base, message, *adapters):
    with pytest.raises(ModelFault, match=message) as caught:
        run(base, *adapters)
    assert not (base.parent / "out").exists() and not list(base.parent.glob(".part-*"))
    return str(caught.value)


def rename(held, old, new):
    for name in list(held):
        held[name.replace(old, new)] = held.pop(name)


def spoil(name):
    held = tensors()
    a, b = held
    match name:
        case "no lora_B":
            del held[b]
        case "no lora_A":
            del held[a]
        case "not in the base model":
            rename(held, "layers.0", "layers.9")
        case "MergedLinear of PEFT 0.2":
            held[a], held[b] = torch.ones(4, 4), torch.ones(3, 2, 1)
        case "the rank is 2":
            held[a], held[b] = torch.ones(3, 4), torch.ones(3, 3)
        case r"\[3, 5\] here and \[3, 4\]":
            held[a] = torch.ones(2, 5)
        case "holds NaN or infinity":
            held[b][1, 1] = float("inf")
        case r"o_proj.weight is \[4, 4\] here and \[3, 4\]":
            held[lora.PREFIX + "o_proj.weight"] = torch.ones(4, 4)
        case "is empty":
            held[a] = torch.ones(2, 0)
        case "lora_magnitude_vector":
            held[f"{NAME}.lora_magnitude_vector"] = torch.ones(3)
        case "changes nothing":
            held[b].zero_()
    return held


@pytest.mark.parametrize(
    "message",
    [
        "no lora_B", "no lora_A", "not in the base model", "MergedLinear of PEFT 0.2", "the rank is 2",
        r"\[3, 5\] here and \[3, 4\]", "holds NaN or infinity", "is empty",
        r"o_proj.weight is \[4, 4\] here and \[3, 4\]", "lora_magnitude_vector", "changes nothing",
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_and_nothing_is_left(base, message):
    save_file({**load_file(base / "model.safetensors"), "o_proj.weight": torch.ones(3, 4)}, base / "model.safetensors")
    with pytest.raises(ModelFault, match=message):
        run(base, adapter(base, spoil(message)))
    assert not (base.parent / "out").exists() and not list(base.parent.glob(".part-*"))


@pytest.mark.parametrize(
    "more",
    [
        {"use_dora": True}, {"bias": "all"}, {"lora_bias": True}, {"use_qalora": True},
        {"trainable_token_indices": [1]},
        {"target_parameters": ["experts"]}, {"layer_replication": [[0, 2]]}, {"alora_invocation_tokens": [1]},
        {"enable_lora": [True, False, True]}, {"init_lora_weights": "pissa_niter_4"},
        *({"lora_alpha": alpha} for alpha in (None, "8", float("nan"))), *({"r": r} for r in (0, "2", 2.0, None)),
    ],
    ids=lambda more: next(iter(more)),
)  # fmt: skip
def test_forms_that_are_not_merged_are_refused_by_name(base, more):
    with pytest.raises(ModelFault, match=next(iter(more))):
        adapter(base, config={**CONFIG, **more})


@pytest.mark.parametrize("kind", ["ADALORA", "LOHA", "IA3", "PREFIX_TUNING"])
def test_other_peft_types_are_refused_by_name(tmp_path, kind):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    with pytest.raises(ModelFault, match=f"a {kind} adapter"):
        lora.weights.read_config(tmp_path)


def test_tensors_beside_the_configuration_of_another_adapter_are_refused(base):
    for targets in (["v_proj", "j_proj"], r".*\.v_proj"):
        refused(
            base,
            f"not in target_modules, the first is {W}",
            adapter(base, config={**CONFIG, "target_modules": targets}),
        )


@pytest.mark.parametrize("saved", [["embed_tokens", "lm_head"], ["lm_head"]])
def test_an_adapter_that_has_lost_the_embeddings_it_was_trained_with_is_refused(base, saved):
    config = {**CONFIG, "modules_to_save": saved}
    refused(base, "is in modules_to_save, and not in the adapter", adapter(base, config=config))
    named = {"embed_tokens": EMBED, "lm_head": HEAD}
    whole = {lora.PREFIX + named[name]: torch.ones(5, 4) for name in saved}
    run(base, adapter(base, {**tensors(), **whole}, config))


def _deep(base, layers, **config):
    held = load_file(base / "model.safetensors")
    q = held.pop(W)
    save_file({**held, **{f"{PARTS.format(n)}.weight": q.clone() for n in range(layers)}}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"vocab_size": 5, **config}))


def test_an_adapter_of_a_shallower_model_is_refused(base):
    _deep(base, 3)
    for targets in (r".*\.self_attn\.(q|v)_proj", r"model\.layers\.[012]\.self_attn\.q_proj|lm_head"):
        refused(base, "of the layers", adapter(base, config={**CONFIG, "target_modules": targets}))
    refused(base, r"target_modules \(", adapter(base, config={**CONFIG, "target_modules": "("}))
    planning.plan(base, [adapter(base, config={**CONFIG, "target_modules": r".*\.0\.self_attn\.q_proj"})], "auto")
    partly = {**CONFIG, "target_modules": ["q_proj"]}
    assert "layers.1.self_attn.q_proj" in refused(base, "2 of the layers", adapter(base, config=partly))
    planning.plan(base, [adapter(base, config={**partly, "layers_to_transform": [0]})], "auto")


@pytest.mark.parametrize(
    ("key", "value"),
    [("modules_to_save", "lm_head"), ("modules_to_save", 1.5), ("modules_to_save", [1]), ("target_modules", [1])],
)
def test_names_that_are_no_names_are_refused(base, key, value):
    with pytest.raises(ModelFault, match=rf"adapter_config\.json: {key} {re.escape(str(value))}"):
        planning.plan(base, [adapter(base, config={**CONFIG, key: value})], "auto")


@pytest.mark.parametrize("config", [{"model_type": "llama", "num_hidden_layers": "2"}, {"model_type": ["llama"]}])
def test_a_configuration_of_other_types_ends_in_no_traceback(base, config):
    (base / "config.json").write_text(json.dumps(config))
    if "num_hidden_layers" in config:
        refused(base, "config.json: 2 is no number of layers", adapter(base))
    else:
        run(base, adapter(base))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", {"model": {"vocab": {"a": "first"}}}),
        ("tokenizer.json", {"model": {"vocab": {"a": [0]}}}),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "b"}]}),
        ("added_tokens.json", {"a": None}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": ["a"]}),
        ("special_tokens_map.json", {"additional_special_tokens": 5}),
    ],
)
def test_a_tokenizers_file_that_is_not_what_it_must_be_is_named(base, name, content):
    (base / name).write_text(json.dumps(content))
    refused(base, f"{name} cannot be read", adapter(base))


def test_a_llama_base_with_a_missing_weight_is_refused(base):
    held = load_file(base / "model.safetensors")
    _deep(base, 2, model_type="llama", num_hidden_layers=3)
    refused(base, "layer 2's self_attn.q_proj.weight", adapter(base))
    _deep_again = {**load_file(base / "model.safetensors"), "model.norm.weight": torch.ones(4)}
    save_file(_deep_again, base / "model.safetensors")
    (base / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    planning.plan(base, [adapter(base)], "auto")
    del _deep_again[HEAD]
    save_file(_deep_again, base / "model.safetensors")
    refused(base, "lm_head.weight", adapter(base))
    assert HEAD in held


@pytest.mark.parametrize(
    "spoiled",
    [{"config.json": '{"quantization_config": {"load_in_8bit": true}}'}, {"quantize_config.json": "{}"}],
)
def test_a_quantised_base_is_refused(base, spoiled):
    for name, text in spoiled.items():
        (base / name).write_text(text)
    refused(base, "quantised", adapter(base))


@pytest.mark.parametrize(("dtype", "message"), [(torch.int8, "int8"), (torch.float8_e4m3fn, "quantised")])
def test_quantised_weights_are_refused_where_the_configuration_is_silent(base, dtype, message):
    held = load_file(base / "model.safetensors")
    save_file({**held, W: held[W].to(dtype)}, base / "model.safetensors")
    refused(base, message, adapter(base))


def _shards(base, suffix, index=True):
    held = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    places = {}
    for number, (name, tensor) in enumerate(held.items(), 1):
        places[name] = f"{stem}-{number:05d}-of-00003.{suffix}"
        (save_file if suffix == "safetensors" else torch.save)({name: tensor}, base / places[name])
    if index:
        (base / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": places}))
    return places


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("index", [True, False])
def test_a_missing_or_cut_shard_is_named(base, suffix, index):
    places = _shards(base, suffix, index)
    planning.plan(base, [adapter(base)], "auto")
    second = base / sorted(places.values())[1]
    whole = second.read_bytes()
    for cut in (0, len(whole) // 2, len(whole) - 1):
        second.write_bytes(whole[:cut])
        refused(base, second.name, adapter(base))
    second.unlink()
    refused(base, f"{second.name} is missing", adapter(base))


def test_a_tensor_that_the_index_promises_and_no_shard_has_is_named(base):
    places = _shards(base, "safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**places, "x.y": places[W]}}))
    refused(base, f"x.y is not in {places[W]}", adapter(base))


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bin_that_needs_more_than_tensors_is_refused_and_not_executed(base, tmp_path, zipped):
    trace = tmp_path / "executed"
    torch.save({W: Touch(trace)}, tmp_path / "adapter_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelFault, match=r"adapter_model\.bin is refused"):
        weights.read_weights(tmp_path / "adapter_model.bin")
    (base / "model.safetensors").unlink()
    torch.save({W: Touch(trace)}, base / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    refused(base, r"pytorch_model\.bin is refused", adapter(base))
    torch.save({"model": tensors()}, tmp_path / "adapter_model.bin")
    with pytest.raises(ModelFault, match='"model" is no tensor'):
        weights.read_weights(tmp_path / "adapter_model.bin")
    assert not trace.exists()


def test_a_base_that_needs_code_of_its_own_is_refused_and_nobody_is_asked(base, monkeypatch):
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoTokenizer": ["own.Tokenizer", None]}}
    (base / "config.json").write_text(json.dumps(config))
    (base / "tokenizer_config.json").write_text(json.dumps({"auto_map": config["auto_map"]}))
    (base / "own.py").write_text("raise SystemExit('executed')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    with pytest.raises(ModelFault, match=f"{base}: no usable tokenizer"):
        models.load_tokenizer(base)


def test_a_value_too_large_for_the_chosen_dtype_is_named(base):
    held = load_file(base / "model.safetensors")
    held[EMBED][2, 2] = 1e6
    save_file(held, base / "model.safetensors")
    plan = planning.plan(base, [adapter(base)], "float16")
    with pytest.raises(ModelFault, match=f"{EMBED}.*float16"):
        merge.write(plan, base.parent)


def test_a_base_that_holds_nan_is_named(base):
    held = load_file(base / "model.safetensors")
    held[HEAD][0, 0] = float("nan")
    save_file(held, base / "model.safetensors")
    refused(base, f"{HEAD} would hold NaN", adapter(base))
