"""Where a run starts, and what an adapter must hold: nothing ever trains from scratch instead."""

import errno
import inspect
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import both_families
from safetensors.torch import load_file, save_file

import finetune
from utils import adapters, models, record
from utils.errors import ArgumentFault, EnvironmentFault, ModelFault
from utils.files import sampled_hash


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A finished short run on a copy of its own, never changed by a test."""
    import tiny_models
    from conftest import write_rows

    folder = tmp_path_factory.mktemp("trained")
    flags = {
        "base_model": str(base),
        "data_path": write_rows(folder / "rows.json", tiny_models.ROWS),
        "output_dir": str(folder / "out"),
        "batch_size": 2,
        "micro_batch_size": 2,
        "num_epochs": 1,
        "val_set_size": 2,
        "load_8bit": False,
        "learning_rate": 1e-2,
    }
    finetune.train(**flags)
    return flags


@pytest.fixture
def copy(trained, tmp_path):
    """The finished run's flags, with a copy of its folder to break."""
    shutil.copytree(trained["output_dir"], tmp_path / "copy")
    return {**trained, "output_dir": str(tmp_path / "copy")}


def tree(folder: Path) -> dict:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_finished_run_says_so_and_changes_nothing(copy, capsys):
    before = tree(Path(copy["output_dir"]))
    finetune.train(**copy)
    assert "already complete" in capsys.readouterr().out
    assert tree(Path(copy["output_dir"])) == before


def test_overwrite_moves_the_old_run_away(copy):
    finetune.train(**{**copy, "learning_rate": 1e-3, "overwrite": True})
    old = Path(f"{copy['output_dir']}.old-1")
    assert (old / "adapter_model.safetensors").exists()
    new = load_file(Path(copy["output_dir"]) / "adapter_model.safetensors")
    assert any(
        not torch.equal(new[name], tensor) for name, tensor in load_file(old / "adapter_model.safetensors").items()
    )


def test_a_folder_that_holds_something_else_is_left_untouched(copy, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ModelFault, match="not empty"):
        finetune.train(**{**copy, "output_dir": str(other)})
    assert tree(other) == {"thesis.txt": b"mine"}


def test_an_interrupted_run_goes_on_at_its_newest_whole_checkpoint(copy, trained, capsys):
    out = Path(copy["output_dir"])
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (out / name).unlink()
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**run, "status": "running"}))
    newest = max(out.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (newest / "optimizer.pt").write_bytes(b"")
    finetune.train(**copy)
    assert f"{newest} is not used, kept as corrupt-{newest.name}: optimizer.pt" in capsys.readouterr().out
    whole = Path(trained["output_dir"]) / "adapter_model.safetensors"
    assert (out / "adapter_model.safetensors").read_bytes() == whole.read_bytes()
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
    assert steps == [1, 2, 3]


def test_a_parent_that_does_not_exist_ends_the_run(copy, tmp_path):
    with pytest.raises(ArgumentFault, match=r"--resume_from_checkpoint: .*nowhere does not exist"):
        finetune.train(
            **{**copy, "output_dir": str(tmp_path / "new"), "resume_from_checkpoint": str(tmp_path / "nowhere")}
        )
    assert not (tmp_path / "new").exists()


def _drop(weights):
    weights.popitem()


def _extra(weights):
    weights["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(8, 64)


def _nan(weights):
    next(iter(weights.values()))[0, 0] = float("nan")


def _zero(weights):
    weights.update({name: torch.zeros_like(tensor) for name, tensor in weights.items() if "lora_B" in name})


def _rank(weights):
    for name in weights:
        weights[name] = weights[name][:4] if "lora_A" in name else weights[name][:, :4].contiguous()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop, "1 tensors are missing"),
        (_extra, "have no place"),
        (_nan, "NaN or infinity"),
        (_rank, "another rank"),
        (_zero, "has learned nothing"),
    ],
)
def test_a_parent_that_does_not_fit_ends_the_run_before_the_base_loads(copy, tmp_path, monkeypatch, spoil, message):
    file = Path(copy["output_dir"]) / "adapter_model.safetensors"
    weights = load_file(file)
    spoil(weights)
    save_file(weights, file)
    monkeypatch.setattr(models, "load_base", lambda *_: pytest.fail("the base was loaded"))
    new = str(tmp_path / "new")
    with pytest.raises(ModelFault, match=message):
        finetune.train(**{**copy, "output_dir": new, "resume_from_checkpoint": copy["output_dir"]})
    assert not Path(new).exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern: plain LoRA only"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa .it changed the base model.: plain LoRA only"),
        ({"target_modules": "all-linear"}, "target_modules all-linear: plain LoRA only"),
        ({"r": 0}, "r 0: plain LoRA only"),
        ({"lora_alpha": 16.5}, "lora_alpha 16.5: plain LoRA only"),
    ],
)
def test_a_parent_that_is_more_than_plain_lora_is_refused(copy, tmp_path, monkeypatch, changed, message):
    """Trained on as plain LoRA its tensors would fit, and make another adapter."""
    path = Path(copy["output_dir"]) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    (path.parent / "run.json").unlink()
    monkeypatch.setattr(models, "load_base", lambda *_: pytest.fail("the base was loaded"))
    with pytest.raises(ModelFault, match=message):
        finetune.train(**{**copy, "output_dir": str(tmp_path / "new"), "resume_from_checkpoint": copy["output_dir"]})


def test_a_parent_trained_with_other_texts_is_refused(copy, tmp_path, capsys):
    path = Path(copy["output_dir"]) / "run.json"
    run = json.loads(path.read_text())
    now, run["template"]["sha256"] = run["template"]["sha256"], "0" * 64
    path.write_text(json.dumps(run))
    change = f"was trained with other texts: template alpaca: {'0' * 12} -> {now[:12]}"
    with pytest.raises(ModelFault, match=change):
        finetune.train(**{**copy, "output_dir": str(tmp_path / "new"), "resume_from_checkpoint": copy["output_dir"]})
    assert record.template_of(path.parent, "") == "alpaca"
    assert change in capsys.readouterr().err


def test_a_merge_of_adapters_without_a_record_is_not_said_to_have_none(tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"kind": "merge", "base": {"fingerprint": "x"}, "template": null}')
    assert record.template_of(tmp_path, "") == "alpaca"
    assert capsys.readouterr().err == (
        f"warning: {tmp_path} names no template in its run.json: the template alpaca is assumed (--prompt_template)\n"
    )


def test_run_json_is_json_that_every_reader_takes(trained):
    text = (Path(trained["output_dir"]) / "run.json").read_text()
    settings = json.loads(text, parse_constant=pytest.fail)["settings"]
    assert set(inspect.signature(finetune.train).parameters) - set(settings) == {"max_forget"}  # it has no limit


def test_a_run_killed_before_its_first_checkpoint_starts_again(copy, trained, capsys):
    out = Path(copy["output_dir"])
    for folder in out.glob("checkpoint-*"):
        shutil.rmtree(folder)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (out / name).unlink()
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**run, "status": "running"}))
    finetune.train(**copy)
    assert f"{out} starts again: it has no checkpoint yet" in capsys.readouterr().out
    whole = Path(trained["output_dir"]) / "adapter_model.safetensors"
    assert (out / "adapter_model.safetensors").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("what", ["file", "link"])
def test_what_only_bears_the_name_of_a_checkpoint_is_kept_aside(copy, what, capsys):
    out = Path(copy["output_dir"])
    (out / "adapter_model.safetensors").unlink()
    false = out / "checkpoint-9"
    false.write_text("mine") if what == "file" else false.symlink_to(out / "nowhere")
    finetune.train(**copy)
    assert f"{false} is not used, kept as corrupt-checkpoint-9: manifest.json is" in capsys.readouterr().out
    assert (out / "corrupt-checkpoint-9").is_symlink() == (what == "link")


def test_a_folder_that_cannot_be_moved_is_left_and_named(copy, monkeypatch):
    """As where a disk is mounted."""

    def busy(*_):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "replace", busy)
    with pytest.raises(EnvironmentFault, match=r"--overwrite: .*copy cannot be moved away: Device or resource busy"):
        finetune.train(**{**copy, "overwrite": True})
    assert (Path(copy["output_dir"]) / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"hello", "empty", "code"])
def test_a_broken_or_empty_adapter_file_is_refused(tmp_path, name, content):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "empty":
        save_file({}, path) if path.suffix == ".safetensors" else torch.save({}, path)
    else:
        torch.save({"weights": Path}, path)
    with pytest.raises(ModelFault):
        adapters.read_weights(path)


def test_an_adapter_is_found_as_safetensors_or_bin(tmp_path):
    with pytest.raises(ModelFault, match="no adapter here"):
        adapters.adapter_file(tmp_path)
    (tmp_path / "adapter_model.bin").touch()
    assert adapters.adapter_file(tmp_path).suffix == ".bin"
    (tmp_path / "adapter_model.safetensors").touch()
    assert adapters.adapter_file(tmp_path).suffix == ".safetensors"


def test_an_adapter_that_learned_nothing_is_not_saved(base, tmp_path):
    model = models.add_lora(models.load_base(base, False, False, "auto", torch.device("cpu")), 4, 8, 0.0, ("q_proj",))
    with pytest.raises(ModelFault, match="nothing was learned"):
        adapters.save_adapter(model, str(tmp_path))
    assert not any(tmp_path.iterdir())


def test_a_base_with_missing_weights_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFault, match=r"missing keys .*model\.norm\.weight"):
        models.load_base(tmp_path / "base", False, False, "auto", torch.device("cpu"))


@both_families
def test_a_base_with_more_layers_than_its_configuration_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    depth = "n_layer" if config["model_type"] == "bloom" else "num_hidden_layers"
    (tmp_path / "base/config.json").write_text(json.dumps({**config, depth: config[depth] - 1}))
    with pytest.raises(ModelFault, match=r"config\.json has no place for weights .*input_layernorm\.weight"):
        models.load_base(tmp_path / "base", False, False, "auto", torch.device("cpu"))


@both_families
def test_a_base_whose_configuration_says_no_dtype_keeps_that_of_its_weights(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    weights = {name: tensor.bfloat16() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    assert models.load_base(tmp_path / "base", False, False, "auto", torch.device("cpu")).dtype == torch.bfloat16
    assert models.empty_base(tmp_path / "base").dtype == torch.bfloat16


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_a_truncated_base_is_refused(base, tmp_path, length):
    shutil.copytree(base, tmp_path / "base")
    with open(tmp_path / "base" / "model.safetensors", "r+b") as file:
        file.truncate(length)
    with pytest.raises(ModelFault, match="does not load"):
        models.load_base(tmp_path / "base", False, False, "auto", torch.device("cpu"))


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"])
def test_all_of_a_tokenizer_counts_in_the_fingerprint(base, tmp_path, name):
    shutil.copytree(base, tmp_path / "base")
    before = record.describe_base("", tmp_path / "base")["fingerprint"]
    (tmp_path / "base" / name).write_text("{}")
    assert record.describe_base("", tmp_path / "base")["fingerprint"] != before


def test_the_fingerprint_is_of_the_content_not_of_the_path(base, tmp_path):
    shutil.copytree(base, tmp_path / "elsewhere")
    names = ("config.json", "model.safetensors")
    assert sampled_hash([base / name for name in names]) == sampled_hash(
        [tmp_path / "elsewhere" / name for name in names]
    )
