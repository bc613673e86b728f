"""Merged models against PEFT's: LLaMA with a growing sentencepiece vocabulary, BLOOM, GPT-2; ties, orders, dtypes."""

import json
from pathlib import Path

import pytest
import sentencepieces
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)  # fmt: skip

import merge_lora
from utils import lora, models, vocabulary
from utils.errors import ModelFault

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
BOTH = ["embed_tokens", "lm_head"]


def llama(folder: Path, **config) -> Path:
    """A tiny LLaMA in float32 with a sentencepiece tokenizer of its own."""
    rows = sentencepieces.save(folder, sentencepieces.trained())
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=rows, **sizes, **config)).save_pretrained(folder)
    return folder


def adapt(model, folder: Path, rows: int | None = None, **config) -> PeftModel:
    """An adapter whose every tensor is random, saved by PEFT into `folder`; rows: the vocabulary it grows to."""
    torch.manual_seed(len(folder.name))
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM", **config}))
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                tensor.normal_(std=0.08)
    model.save_pretrained(folder)
    return model.eval()


def loaded(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model, rows: int = 300) -> torch.Tensor:
    ids = torch.arange(3, rows - rows % 3).reshape(3, -1)[:, ::5]
    with torch.no_grad():
        return model(input_ids=ids).logits


def as_of_2023(folder: Path) -> None:
    """The adapter as a .bin under a configuration of that year's keys."""
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    keys = (
        "bias",
        "fan_in_fan_out",
        "inference_mode",
        "lora_dropout",
        "modules_to_save",
        "peft_type",
        "r",
        "target_modules",
    )
    old = {
        "enable_lora": None,
        "merge_weights": False,
        "lora_alpha": float(config["lora_alpha"]),
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps({key: config[key] for key in keys} | old))


def merge(base: Path, *adapters: Path, **flags) -> dict:
    """merge_lora.py into base/../merged; its report."""
    output = base.parent / "merged"
    merge_lora.main(str(base), ",".join(map(str, adapters)), str(output), **flags)
    return json.loads((output / "merge_report.json").read_text())


@pytest.fixture
def chinese(tmp_path):
    """A LLaMA, an adapter that grew its vocabulary, and PEFT's model of both."""
    base, adapter = llama(tmp_path / "llama"), tmp_path / "chinese-llama"
    rows = sentencepieces.save(adapter, sentencepieces.grown(sentencepieces.trained(), sentencepieces.chinese_pieces()))
    model = adapt(loaded(base), adapter, rows, target_modules=ALL, modules_to_save=BOTH)
    return base, adapter, model, rows


def test_a_llama_grows_by_chinese_pieces_and_says_what_peft_says(chinese, tmp_path):
    base, adapter, model, rows = chinese
    as_of_2023(adapter)
    report = merge(base, adapter)
    merged = loaded(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, rows), logits(model, rows), rtol=0, atol=1e-5)
    old = vocabulary.tokenizer_size(base)
    assert report["vocabulary"] == {
        "rows": rows, "base_rows": old, "tokenizer_entries": rows, "tied": False,
        "embeddings": {name: {"added": rows - old, "changed": old} for name in EMBEDDINGS},
    }  # fmt: skip
    assert report["tensors"]["counts"] == {"changed": 2 + 2 * 7, "unchanged": 2 * 2 + 1}
    forward = report["forward"]
    assert forward["computed_in"] == "float32" and forward["largest_difference"] < 1e-4
    assert forward["greedy_tokens_same"] == forward["greedy_tokens"] == 5 * 64
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert len(tokenizer) == merged.config.vocab_size == rows
    text = "中国的首都是北京"
    assert len(tokenizer(text)["input_ids"]) < len(AutoTokenizer.from_pretrained(base)(text)["input_ids"])


def plus(chinese, folder: Path) -> tuple[PeftModel, int]:
    """A second adapter on top of the first, with one more row for [PAD], as Chinese-Alpaca-Plus has."""
    _, first, model, rows = chinese
    sentencepieces.save(folder, (first / "tokenizer.model").read_bytes(), pad_token="[PAD]")
    return adapt(model.merge_and_unload(), folder, rows + 1, target_modules=ALL, r=8, modules_to_save=BOTH), rows + 1


def test_two_adapters_are_merged_in_their_order_and_in_no_other(chinese, tmp_path):
    base, first, second = *chinese[:2], tmp_path / "alpaca-plus"
    model, rows = plus(chinese, second)
    with pytest.raises(ModelFault, match="wrong order"):
        merge(base, second, first)
    report = merge(base, first, second)
    torch.testing.assert_close(logits(loaded(tmp_path / "merged"), rows), logits(model, rows), rtol=0, atol=2e-5)
    assert report["vocabulary"]["rows"] == report["vocabulary"]["tokenizer_entries"] == rows
    assert report["forward"]["relative_difference"] < 1e-6
    run = json.loads((tmp_path / "merged/run.json").read_text())
    assert [Path(adapter["path"]).name for adapter in run["adapters"]] == ["chinese-llama", "alpaca-plus"]


@pytest.mark.parametrize("swap", ["llama weights, alpaca tokenizer", "alpaca weights, llama tokenizer"])
def test_one_entry_more_or_less_is_refused_with_both_numbers(chinese, tmp_path, swap):
    base, first, second = *chinese[:2], tmp_path / "alpaca-plus"
    _, rows = plus(chinese, second)
    if swap.startswith("llama"):
        (first / "tokenizer_config.json").write_bytes((second / "tokenizer_config.json").read_bytes())
        adapters, entries, embedding = [first], rows, rows - 1
    else:
        (second / "tokenizer_config.json").write_bytes((first / "tokenizer_config.json").read_bytes())
        adapters, entries, embedding = [first, second], rows - 1, rows
    with pytest.raises(ModelFault, match=f"{entries} entries, the merged embedding {embedding} rows.*Chinese-Alpaca"):
        merge(base, *adapters)
    assert not (tmp_path / "merged").exists()


def test_a_grown_vocabulary_without_its_tokenizer_or_its_rows_is_refused(chinese, tmp_path):
    base, adapter, _, rows = chinese
    old = vocabulary.tokenizer_size(base)
    bare = tmp_path / "bare"
    adapt(loaded(base), bare, target_modules=ALL)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (adapter / name).rename(bare / name)
    with pytest.raises(ModelFault, match=f"{rows} entries, the merged embedding {old} rows.*without its embed_tokens"):
        merge(base, bare)
    with pytest.raises(ModelFault, match=f"{old} entries, the merged embedding {rows} rows"):
        merge(base, adapter)


@pytest.mark.parametrize(
    "config", [{}, {"pad_token": "[PAD]"}, {"pad_token": "<unk>"}, {"bos_token": "", "eos_token": ""}]
)
@pytest.mark.parametrize("added", [{}, {"<|im|>": 480}])
def test_sizes_read_from_files_are_those_that_transformers_finds(tmp_path, config, added):
    pieces = sentencepieces.save(tmp_path, sentencepieces.trained(), **config)
    if added:
        (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im|>": pieces}))
    size = vocabulary.tokenizer_size(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert size == len(tokenizer) == pieces + len(added) + (config.get("pad_token") == "[PAD]")
    tokenizer.save_pretrained(tmp_path / "json")
    assert vocabulary.tokenizer_size(tmp_path / "json") == size


@pytest.mark.parametrize("other", [{}, {"bos_token": "", "eos_token": "", "unk_token": ""}])
def test_a_tokenizer_of_early_2023_is_put_right(tmp_path, other):
    """Its names are empty and its class is gone: transformers recurses without end, or forgets BOS and the blank."""
    base, adapter, text = llama(tmp_path / "llama"), tmp_path / "adapter", "首都 </s>"
    right = [1, *AutoTokenizer.from_pretrained(base)(text, add_special_tokens=False)["input_ids"]]
    lost = {"bos_token": "", "eos_token": "", "unk_token": "", "tokenizer_class": "LLaMATokenizer"}
    (base / "tokenizer_config.json").write_text(json.dumps(lost))
    (base / "special_tokens_map.json").write_text(json.dumps(other))
    adapt(loaded(base), adapter, target_modules=["q_proj"])
    own = models.load_tokenizer(base)
    assert (own.unk_token_id, own.bos_token_id, own.eos_token_id) == (0, 1, 2)
    assert own("首都")["input_ids"] == right[: len(own("首都")["input_ids"])]
    merge(base, adapter)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer(text)["input_ids"] == right and (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def bloom(folder: Path, bare: bool) -> Path:
    """A BLOOM of 512 rows for the tokenizer's fewer entries; bare: named as the published checkpoints are."""
    sentencepieces.save(folder, sentencepieces.trained())
    torch.manual_seed(0)
    BloomForCausalLM(BloomConfig(vocab_size=512, hidden_size=32, n_layer=2, n_head=4)).save_pretrained(folder)
    path = folder / "model.safetensors"
    held = load_file(path)
    assert "lm_head.weight" not in held
    if bare:
        save_file({name.removeprefix("transformer."): t for name, t in held.items()}, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("bare", [True, False])
def test_a_bloom_keeps_its_padded_vocabulary_and_its_tie(tmp_path, bare):
    base, adapter = bloom(tmp_path / "bloom", bare), tmp_path / "adapter"
    sentencepieces.save(adapter, sentencepieces.trained())
    model = adapt(loaded(base), adapter, target_modules=["query_key_value", "dense"])
    report = merge(base, adapter)
    merged = loaded(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(model), rtol=0, atol=1e-5)
    assert merged.config.vocab_size == report["vocabulary"]["rows"] == 512
    assert merged.lm_head.weight is merged.transformer.word_embeddings.weight
    assert report["vocabulary"]["tied"] and report["vocabulary"]["tokenizer_entries"] < 512
    assert report["tensors"]["counts"]["changed"] == 4


def test_gpt2s_transposed_weights(tmp_path):
    base, adapter = tmp_path / "gpt2", tmp_path / "adapter"
    rows = sentencepieces.save(base, sentencepieces.trained())
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=rows, n_positions=64, n_embd=32, n_layer=2, n_head=4))
    model.save_pretrained(base)
    peft = adapt(loaded(base), adapter, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    report = merge(base, adapter)
    torch.testing.assert_close(logits(loaded(tmp_path / "merged"), 200), logits(peft, 200), rtol=0, atol=1e-5)
    assert report["forward"]["greedy_tokens"] == 5 * 32


def tied(tmp_path) -> Path:
    return llama(tmp_path / "tied", tie_word_embeddings=True)


def test_tied_embeddings_grow_and_stay_tied(tmp_path):
    base, adapter = tied(tmp_path), tmp_path / "adapter"
    rows = sentencepieces.save(adapter, sentencepieces.grown(sentencepieces.trained(), ("首都", "北京")))
    config = {"target_modules": ALL, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    model = adapt(loaded(base), adapter, rows, **config)
    merge(base, adapter)
    merged = loaded(tmp_path / "merged")
    assert "lm_head.weight" not in load_file(tmp_path / "merged/model.safetensors")
    assert merged.lm_head.weight is merged.model.embed_tokens.weight and len(merged.lm_head.weight) == rows
    torch.testing.assert_close(logits(merged, rows), logits(model, rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"modules_to_save": BOTH}, "lm_head.weight differs from model.embed_tokens.weight"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight comes without the input embedding"),
        (
            {"modules_to_save": ["embed_tokens"]},
            "embed_tokens.weight was trained beside an output embedding",
        ),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "LoRA on model.embed_tokens.weight alone"),
    ],
)
def test_what_would_untie_embeddings_is_refused(tmp_path, config, message):
    base = tied(tmp_path)
    adapt(loaded(base), tmp_path / "adapter", **{"target_modules": ["q_proj"], **config})
    with pytest.raises(ModelFault, match=message):
        merge(base, tmp_path / "adapter")


@pytest.mark.parametrize(
    "config",
    [
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}, "use_rslora": True},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["norm"], "layers_to_transform": [1]},
    ],
    ids=["patterns", "embeddings", "norm"],
)
def test_configurations_agree_with_peft(tmp_path, config):
    base = llama(tmp_path / "llama")
    model = adapt(loaded(base), tmp_path / "adapter", **{"target_modules": ALL, **config})
    merge(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["auto", "float16", "bfloat16"])
def test_a_bfloat16_base_has_the_bits_that_peft_gives_it(tmp_path, dtype):
    base, adapter = llama(tmp_path / "llama"), tmp_path / "adapter"
    loaded(base).bfloat16().save_pretrained(base)
    adapt(loaded(base), adapter, target_modules=ALL)
    report = merge(base, adapter, dtype=dtype)
    expected = PeftModel.from_pretrained(loaded(base), adapter).merge_and_unload().state_dict()
    found = load_file(tmp_path / "merged/model.safetensors")
    assert found.keys() == expected.keys()
    if dtype != "float16":
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    kept = {"auto": "bfloat16"}.get(dtype, dtype)
    assert {str(tensor.dtype) for tensor in found.values()} == {f"torch.{kept}"}
    assert str(loaded(tmp_path / "merged").dtype) == f"torch.{kept}"
    assert 0 < report["forward"]["relative_difference"] < report["forward"]["relative_difference_allowed"]


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_difference_beyond_rounding_fails_and_leaves_nothing(tmp_path, monkeypatch, stored):
    """A scale that is wrong by a quarter: every tensor is what was planned, PEFT's own layers say otherwise."""
    base = llama(tmp_path / "llama")
    loaded(base).to(getattr(torch, stored)).save_pretrained(base)
    adapt(loaded(base), tmp_path / "adapter", target_modules=ALL)
    right = lora.Adapter._scale
    monkeypatch.setattr(lora.Adapter, "_scale", lambda *given: 1.25 * right(*given))
    with pytest.raises(ModelFault, match="is not base \\+ adapter: its logits differ by"):
        merge(base, tmp_path / "adapter")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "llama"]
