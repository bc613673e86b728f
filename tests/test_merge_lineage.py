"""merge_lora.py by what an adapter's run.json tells: never twice, never what it continues, only as its run wrote it."""

import json
from pathlib import Path

import pytest
from merge_cases import merge_flags, save_adapter, tensors
from safetensors.torch import save_file

import merge_lora
from utils import files
from utils.errors import ModelFault


@pytest.fixture
def flags(tmp_path) -> dict:
    return merge_flags(tmp_path)


def test_an_adapter_is_never_merged_twice(flags, tmp_path):
    merge_lora.main(**flags)
    again = {**flags, "base_model": str(tmp_path / "out"), "output_dir": str(tmp_path / "out2")}
    with pytest.raises(ModelFault, match="adapter is merged already"):
        merge_lora.main(**again)
    with pytest.raises(ModelFault, match="adapter is merged already"):
        merge_lora.main(
            **{**flags, "lora_model": f"{flags['lora_model']},{flags['lora_model']}", "output_dir": again["output_dir"]}
        )
    sha256 = files.sha256_file(Path(flags["lora_model"], "adapter_model.safetensors"))
    parent = {"path": flags["lora_model"], "sha256": sha256}
    held = {name: tensor * 2 for name, tensor in tensors().items()}
    second = save_adapter(tmp_path / "second", held, run={"parent": parent})
    third = save_adapter(tmp_path / "third", {name: tensor * 3 for name, tensor in held.items()})
    (third / "run.json").write_text(json.dumps({"parent": {"path": str(second), "sha256": "0" * 64}}))
    for adapter in (second, third):
        with pytest.raises(ModelFault, match="continues an adapter that is merged already"):
            merge_lora.main(**{**again, "lora_model": str(adapter)})
    (third / "run.json").unlink()
    merge_lora.main(**{**again, "lora_model": str(third)})
    run = json.loads((tmp_path / "out2/run.json").read_text())
    assert run["merged"][0] == sha256 and len(run["merged"]) == 2


@pytest.mark.parametrize("moved", [False, True])
def test_nor_with_what_it_continues_by_a_checkpoint_or_behind_a_move(flags, tmp_path, moved):
    """first <- the run whose checkpoint <- second: the first is inside the second as well."""
    tree = tmp_path / "tree"
    first = save_adapter(tree.mkdir() or tree / "first")
    parent = {"path": str(first), "sha256": files.sha256_file(first / "adapter_model.safetensors")}
    held = {name: tensor * 2 for name, tensor in tensors().items()}
    save_adapter(tree / "run", held, run={"parent": parent, "folder": str(tree / "run")})
    start = save_adapter(tree / "run/checkpoint-2", held)
    parent = {"path": str(start), "sha256": files.sha256_file(start / "adapter_model.safetensors")}
    save_adapter(tree / "second", run={"parent": parent, "folder": str(tree / "second")})
    if moved:
        tree = tree.rename(tmp_path / "elsewhere")
    merge_lora.main(**{**flags, "lora_model": str(tree / "first")})
    held = {name: tensor * 3 for name, tensor in tensors().items()}
    save_file(held, tree / "second/adapter_model.safetensors")
    again = {**flags, "base_model": flags["output_dir"], "output_dir": str(tmp_path / "out2")}
    with pytest.raises(ModelFault, match="continues an adapter that is merged already"):
        merge_lora.main(**{**again, "lora_model": str(tree / "second")})


def test_a_lineage_that_bites_its_tail_has_an_end(flags):
    parent = {"path": flags["lora_model"], "sha256": "0" * 64}
    Path(flags["lora_model"], "run.json").write_text(json.dumps({"parent": parent}))
    merge_lora.main(**flags)


def test_an_adapter_that_is_not_what_its_run_wrote_is_refused(flags):
    path = Path(flags["lora_model"], "adapter_model.safetensors")
    written = {"files": {path.name: files.sha256_file(path)}}
    (path.parent / "run.json").write_text(json.dumps(written))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFault, match=r"adapter_model\.safetensors is not what"):
        merge_lora.main(**flags)


def test_an_adapter_of_another_base_needs_force_base(flags, tmp_path, capsys):
    Path(flags["lora_model"], "run.json").write_text(json.dumps({"base": {"name": "other", "fingerprint": "0" * 64}}))
    with pytest.raises(ModelFault, match="trained on another base model"):
        merge_lora.main(**flags)
    merge_lora.main(**flags, force_base=True)
    assert "warning: --lora_model" in capsys.readouterr().err
