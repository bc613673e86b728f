"""rsLoRA: an adapter scaled by alpha / sqrt(r), the same on both paths, in the next stage and after merging."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from conftest import both_families
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import merge_lora
from utils import adapters, fast, models, record
from utils.errors import ArgumentFault, ModelFault


@pytest.fixture
def wide(quick) -> dict:
    """The flags of a run whose two scales are 4 and 16."""
    return {**quick, "use_rslora": True, "lora_r": 16, "lora_alpha": 64, "lora_dropout": 0.0}


def config_of(folder) -> dict:
    return json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))


@both_families
def test_training_has_the_scale_alpha_by_sqrt_r_on_both_paths(wide, train, tmp_path, monkeypatch):
    scales, learned, add = [], [], models.add_lora

    def seen(*given, **settings):
        model = add(*given, **settings)
        scales.extend(layer.scaling["default"] for layer in model.modules() if hasattr(layer, "lora_A"))
        return model

    monkeypatch.setattr(models, "add_lora", seen)
    for is_fast in (True, False):
        out = tmp_path / str(is_fast)
        train(**{**wide, "output_dir": str(out), "fast": is_fast})
        assert config_of(out)["use_rslora"] is True
        learned.append(load_file(out / "adapter_model.safetensors"))
    assert set(scales) == {16.0}
    for name, tensor in learned[0].items():
        torch.testing.assert_close(tensor, learned[1][name], rtol=1e-2, atol=1e-4)


def test_the_fused_product_is_pefts(base):
    layers = []
    for is_fast in (True, False):
        torch.manual_seed(0)
        model = models.load_base(base, False, False, "float32", torch.device("cpu"))
        model = models.add_lora(model, 16, 64, 0.0, ("q_proj",), is_fast, use_rslora=True)
        layers.append(model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").train())
        torch.nn.init.normal_(layers[-1].lora_B["default"].weight, std=0.1)
    assert isinstance(layers[0], fast.FusedLora) and not isinstance(layers[1], fast.FusedLora)
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(2, 5, 64)
    torch.testing.assert_close(layers[0](x), layers[1](x))


def test_the_next_stage_inherits_it_and_a_contradiction_is_refused(wide, train, tmp_path, capsys):
    train(**wide)
    following = {**wide, "output_dir": str(tmp_path / "next"), "resume_from_checkpoint": wide["output_dir"]}
    train(**{**following, "use_rslora": False})
    assert f"--use_rslora True inherited from {wide['output_dir']}" in capsys.readouterr().out
    assert config_of(tmp_path / "next")["use_rslora"] is True
    assert record.read(tmp_path / "next")["settings"]["use_rslora"] is True
    parent = adapters.describe_parent(wide["output_dir"], str(tmp_path / "other"))
    flags = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    with pytest.raises(ArgumentFault, match=r"--use_rslora: False is not what .* was trained with \(True\)"):
        adapters.inherit({**flags, **wide, "use_rslora": False}, frozenset({"use_rslora"}), parent)
    with pytest.raises(ModelFault, match="--use_rslora: True -> False"):
        train(**{**wide, "use_rslora": False})


def test_a_run_of_before_the_flag_is_the_run_without_it(quick, train, capsys):
    train(**quick)
    path = Path(quick["output_dir"]) / record.NAME
    run = json.loads(path.read_text(encoding="utf-8"))
    for name in record.BEFORE:
        del run["settings"][name]
    path.write_text(json.dumps(run), encoding="utf-8")
    train(**quick)
    assert "is already complete" in capsys.readouterr().out


def test_the_merge_is_pefts(wide, train, tmp_path):
    train(**wide)
    merge_lora.main(wide["base_model"], wide["output_dir"], str(tmp_path / "merged"))
    base = AutoModelForCausalLM.from_pretrained(wide["base_model"])
    expected = adapters.apply_adapter(base, Path(wide["output_dir"])).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
