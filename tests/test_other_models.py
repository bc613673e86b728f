"""Causal models of other families through finetune.py: randomly initialised small ones are trained, answered with and
merged, or refused with the reason.

python -m pytest tests/test_other_models.py
"""

import json
import warnings
from pathlib import Path

import pytest
import torch
from conftest import write_rows
from safetensors.torch import load_file
from tiny_models import ROWS, bpe_tokenizer, tiny_bloom
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)  # fmt: skip

import finetune
import finetune_bloom
import generate
import generate_bloom
import merge_lora
from utils import models, record
from utils.errors import ArgumentFault, ModelFault

ROOT = Path(__file__).resolve().parent.parent
ROWS_ = 512  # of the embedding: more than the tokenizer has entries, as in Qwen2's published ones
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
# (configuration, model class, LoRA targets). Qwen2's embeddings are tied, Mistral's window is shorter than the rows.
TRIED = {
    "qwen2": (
        Qwen2Config(vocab_size=ROWS_, num_key_value_heads=2, tie_word_embeddings=True, **SIZES),
        Qwen2ForCausalLM,
        ("q_proj", "v_proj"),
    ),
    "gpt_neox": (GPTNeoXConfig(vocab_size=ROWS_, **SIZES), GPTNeoXForCausalLM, ("query_key_value", "dense")),
    "mistral": (
        MistralConfig(vocab_size=ROWS_, num_key_value_heads=2, sliding_window=16, **SIZES),
        MistralForCausalLM,
        ("q_proj", "v_proj"),
    ),
}


def saved(folder: Path, config, kind) -> Path:
    torch.manual_seed(0)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, None
    kind(config).save_pretrained(folder)
    bpe_tokenizer().save_pretrained(folder)
    return folder


def flags_of(base: Path, tmp_path: Path, **more) -> dict:
    return {
        "base_model": str(base),
        "data_path": write_rows(tmp_path / "rows.json", ROWS),
        "output_dir": str(tmp_path / "out"),
        "batch_size": 4,
        "micro_batch_size": 2,
        "num_epochs": 3,
        "val_set_size": 2,
        "lora_r": 4,
        "load_8bit": False,
        "learning_rate": 1e-2,
        "train_on_inputs": False,
        **more,
    }


@pytest.mark.parametrize("family", TRIED)
def test_it_trains_answers_and_merges(family, tmp_path, capsys):
    config, kind, targets = TRIED[family]
    base = saved(tmp_path / "base", config, kind)
    flags = flags_of(base, tmp_path, lora_target_modules=targets, lora_dropout=0.0)
    finetune.train(**flags, dry_run=True)
    assert "memory: " in capsys.readouterr().out
    finetune.train(**flags)
    losses = record.read(tmp_path / "out")["losses"]
    assert losses["best"] < losses["start"]
    held = load_file(tmp_path / "out/adapter_model.safetensors")
    assert all(tensor.any() for tensor in held.values()) and len(held) == 2 * 2 * len(targets)

    finetune.train(**{**flags, "output_dir": str(tmp_path / "plain"), "fast": False})
    plain = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    for name in held:
        torch.testing.assert_close(held[name], plain[name], rtol=1e-2, atol=1e-4)

    prompts = write_rows(tmp_path / "prompts.json", [ROWS[0]["instruction"], "短"])
    answered = {"is_ui": False, "test_input_path": prompts, "max_new_tokens": 8}
    target = str(tmp_path / "test.json")
    generate.main(base_model=str(base), lora_weights=flags["output_dir"], output_path=target, **answered)
    merge_lora.main(str(base), flags["output_dir"], str(tmp_path / "merged"))
    generate.main(base_model=str(tmp_path / "merged"), output_path=target + ".merged", **answered)
    texts = [[row["output"] for row in json.loads(Path(path).read_text())] for path in (target, target + ".merged")]
    assert texts[0] == texts[1] and len(texts[0]) == 2
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        (GPT2Config(vocab_size=ROWS_, n_embd=32, n_layer=2, n_head=4), GPT2LMHeadModel, "no linear layers"),
        (T5Config(vocab_size=ROWS_, d_model=32, num_layers=2), T5ForConditionalGeneration, "no causal language model"),
        (BertConfig(vocab_size=ROWS_, **SIZES), BertLMHeadModel, "no causal language model"),
    ],
    ids=["gpt2", "t5", "bert"],
)
def test_what_cannot_be_trained_is_refused_before_weights_are_read(config, kind, message, tmp_path, monkeypatch):
    base = saved(tmp_path / "base", config, kind)
    monkeypatch.setattr(models, "load_base", lambda *_: pytest.fail("the base was loaded"))
    with pytest.raises(ModelFault, match=f"{config.model_type} (is|has) {message}"):
        finetune.train(**flags_of(base, tmp_path, lora_target_modules=("c_attn",)))


def test_without_targets_of_its_own_a_model_is_refused_with_those_it_has(tmp_path):
    base = tiny_bloom(tmp_path / "bloom", layers=1)
    with pytest.raises(ArgumentFault, match=r"q_proj, v_proj not in this model \(it has dense, .*query_key_value\)"):
        finetune.train(**flags_of(base, tmp_path))
    llama = saved(tmp_path / "neox", *TRIED["mistral"][:2])
    with pytest.raises(ArgumentFault, match=r"query_key_value not in this model \(it has .*q_proj.*v_proj\)"):
        finetune_bloom.train(**flags_of(llama, tmp_path))


def test_the_head_is_no_target(tmp_path):
    base = saved(tmp_path / "neox", *TRIED["gpt_neox"][:2])
    with pytest.raises(ArgumentFault, match="embed_out not in this model"):
        finetune.train(**flags_of(base, tmp_path, lora_target_modules=("embed_out",)))


# --- PEFT 0.2 ---


@pytest.fixture
def old_adapter(tmp_path) -> Path:
    """As PEFT 0.2 saved an adapter of one target module: lora_A of two ranks, lora_B as a grouped convolution's."""
    base = tiny_bloom(tmp_path / "base")
    finetune_bloom.train(**flags_of(base, tmp_path, num_epochs=1))
    folder = tmp_path / "old"
    folder.mkdir()
    held = load_file(tmp_path / "out/adapter_model.safetensors")
    old = {
        name: torch.cat([tensor, tensor]) if "lora_A" in name else torch.ones(len(tensor) * 2 // 3, 4, 1)
        for name, tensor in held.items()
    }
    torch.save(old, folder / "adapter_model.bin")
    config = {
        "base_model_name_or_path": "bigscience/bloom-7b1", "bias": "none", "enable_lora": [True, False, True],
        "fan_in_fan_out": True, "inference_mode": True, "lora_alpha": 16, "lora_dropout": 0.05, "merge_weights": False,
        "modules_to_save": None, "peft_type": "LORA", "r": 4, "target_modules": ["query_key_value"],
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("says_so", [True, False], ids=["enable_lora", "shapes alone"])
def test_an_adapter_of_peft_02_is_refused_with_what_to_do(old_adapter, says_so, tmp_path, monkeypatch):
    if not says_so:
        config = json.loads((old_adapter / "adapter_config.json").read_text())
        config |= {"enable_lora": None, "fan_in_fan_out": False}
        (old_adapter / "adapter_config.json").write_text(json.dumps(config))
    monkeypatch.setattr(models, "load_base", lambda *_: pytest.fail("the base was loaded"))
    base, out = str(tmp_path / "base"), str(tmp_path / "new")
    prompts = write_rows(tmp_path / "p.json", ["短"])
    calls = [
        lambda: finetune_bloom.train(
            **{**flags_of(Path(base), tmp_path), "output_dir": out, "resume_from_checkpoint": str(old_adapter)}
        ),
        lambda: generate_bloom.main(
            base_model=base, lora_weights=str(old_adapter), is_ui=False, test_input_path=prompts
        ),
        lambda: merge_lora.main(base, str(old_adapter), out),
    ]
    for call in calls:
        refused = pytest.raises(ModelFault, match=r"old.*MergedLinear of PEFT 0\.2.*train it again from its data")
        with refused, warnings.catch_warnings(action="error", category=UserWarning):  # PEFT's would stand before it
            call()
        assert not Path(out).exists()


def test_a_layer_that_the_model_passes_by_is_named(tmp_path, capsys):
    """BLOOM's slow_but_exact reads the weights of `dense` itself, and so whatever LoRA adds to the layer is lost."""
    base = tiny_bloom(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "slow_but_exact": True, "pretraining_tp": 2}))
    finetune_bloom.train(**flags_of(base, tmp_path, num_epochs=1, lora_target_modules=("query_key_value", "dense")))
    warning = "2 layers have learned nothing, the model passes them by: "
    assert warning in capsys.readouterr().err


@pytest.mark.parametrize("readme", ["README.md", "README_zh.md"])
def test_the_readmes_name_what_was_tried(readme):
    text = (ROOT / readme).read_text(encoding="utf-8")
    for name in ("Qwen2", "GPT-NeoX", "Mistral"):
        assert name in text, name
