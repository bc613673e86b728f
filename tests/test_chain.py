"""The whole way on a tiny model of each family: data -> adapter -> answers -> merged weights -> the next stage."""

import json
from pathlib import Path

import pytest
import tiny_models
import torch
from conftest import ALL_LINEAR, both_families, write_rows
from safetensors.torch import load_file
from tiny_models import HELD_OUT, ROWS
from transformers import AutoModelForCausalLM, AutoTokenizer

import generate
import generate_bloom
import merge_lora
from scripts import lineage
from utils import adapters, models, record, training

pytestmark = both_families
ANSWER = {"llama": generate.main, "bloom": generate_bloom.main}
TINY = {"llama": tiny_models.tiny_llama, "bloom": tiny_models.tiny_bloom}
WANTED = [row["output"] for row in ROWS]


def answers(prompts: list, folder: Path, **flags) -> list[dict]:
    """The test.json of the base's own script for these prompts."""
    path = write_rows(folder / "prompts.json", prompts)
    target = folder / "test.json"
    family = json.loads((Path(flags["base_model"]) / "config.json").read_text(encoding="utf-8"))["model_type"]
    fixed = {"is_ui": False, "output_path": str(target), "max_new_tokens": 40, "overwrite": True}
    ANSWER[family](test_input_path=path, **fixed, **flags)
    return json.loads(target.read_text(encoding="utf-8"))


def questions() -> list[dict]:
    return [{"instruction": row["instruction"], "input": row["input"]} for row in ROWS]


def test_rows_are_learned_by_heart_and_answered_through_test_json(stage, tmp_path):
    got = answers(questions(), tmp_path, base_model=stage["base_model"], lora_weights=stage["output_dir"])
    assert [row["output"] for row in got] == WANTED
    assert {row["finish_reason"] for row in got} == {"stop"}
    assert [row["instruction"] for row in got] == [row["instruction"] for row in ROWS]


def test_the_base_alone_gives_other_answers(stage, tmp_path):
    got = answers(questions(), tmp_path, base_model=stage["base_model"], prompt_template="alpaca_short")
    assert not set(WANTED) & {row["output"] for row in got}


def test_held_out_prompts_give_none_of_the_trained_answers(stage, tmp_path):
    got = answers(HELD_OUT, tmp_path, base_model=stage["base_model"], lora_weights=stage["output_dir"])
    assert not set(WANTED) & {row["output"] for row in got}


def test_merged_weights_answer_alike_and_transformers_loads_them(stage, tmp_path):
    merged = tmp_path / "merged"
    flags = {"base_model": stage["base_model"], "lora_model": stage["output_dir"], "output_dir": str(merged)}
    merge_lora.main(**flags)
    got = answers(questions(), tmp_path, base_model=str(merged))  # the template comes from the merged run.json
    assert [row["output"] for row in got] == WANTED

    loaded, report = AutoModelForCausalLM.from_pretrained(merged, output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert AutoTokenizer.from_pretrained(merged).eos_token_id == 2
    adapted = models.load_base(Path(stage["base_model"]), False, False, "auto", torch.device("cpu"))
    adapted = adapters.apply_adapter(adapted, Path(stage["output_dir"])).merge_and_unload()
    expected = adapted.state_dict()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


def test_merging_again_changes_nothing_and_another_adapter_is_refused(stage, tmp_path, capsys):
    flags = {"base_model": stage["base_model"], "lora_model": stage["output_dir"], "output_dir": str(tmp_path / "m")}
    merge_lora.main(**flags)
    before = (tmp_path / "m/model.safetensors").stat().st_mtime_ns
    merge_lora.main(**flags)
    assert "already complete" in capsys.readouterr().out
    assert (tmp_path / "m/model.safetensors").stat().st_mtime_ns == before
    (tmp_path / "m/run.json").unlink()
    with pytest.raises(Exception, match="not empty"):
        merge_lora.main(**flags)


def test_every_lora_tensor_has_moved_and_no_base_tensor_has(stage, base):
    state = load_file(Path(stage["output_dir"]) / "adapter_model.safetensors")
    fresh = models.load_base(base, False, False, "auto", torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    torch.manual_seed(42)
    peft = models.add_lora(fresh, 16, 16, 0.0, stage["lora_target_modules"])
    start = {name.replace(".default", ""): tensor for name, tensor in peft.named_parameters() if "lora_" in name}
    assert state.keys() == start.keys()
    assert all(not torch.equal(state[name], start[name]) for name in state)
    disk = load_file(base / "model.safetensors")
    assert all(torch.equal(disk[name], before[name]) for name in disk)
    assert all(not tensor.requires_grad for name, tensor in peft.named_parameters() if "lora_" not in name)


def test_the_second_stage_starts_exactly_at_the_first_ones_weights(stage, quick, tmp_path, monkeypatch, train):
    seen = {}

    def capture(model, *args):
        seen.update({name: tensor.detach().clone() for name, tensor in model.named_parameters() if "lora_" in name})
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "build", capture)
    lora = {key: stage[key] for key in ("lora_r", "lora_target_modules", "lora_dropout")}
    with pytest.raises(KeyboardInterrupt):
        train(**{**quick, **lora, "resume_from_checkpoint": stage["output_dir"]})
    first = load_file(Path(stage["output_dir"]) / "adapter_model.safetensors")
    assert {name.replace(".default", ""): 0 for name in seen}.keys() == first.keys()
    assert all(torch.equal(tensor, first[name.replace(".default", "")]) for name, tensor in seen.items())


def test_the_same_command_twice_gives_the_same_bytes(quick, tmp_path, train):
    train(**quick)
    train(**{**quick, "output_dir": str(tmp_path / "again")})
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_run_json_tells_what_made_the_adapter(stage, quick, tmp_path, train, capsys):
    lora = {key: stage[key] for key in ("lora_r", "lora_target_modules", "lora_dropout")}
    train(**{**quick, **lora, "resume_from_checkpoint": stage["output_dir"]})
    run = record.read(tmp_path / "out")
    parent = record.read(Path(stage["output_dir"]))
    assert run["status"] == parent["status"] == "complete"
    assert run["base"]["fingerprint"] == parent["base"]["fingerprint"]
    assert run["parent"]["path"] == str(Path(stage["output_dir"]).resolve())
    assert run["data"][0]["rows"] == 8 and len(run["data"][0]["sha256"]) == 64
    assert run["rows"]["training"]["rows"] == 6 and run["rows"]["validation"]["rows"] == 2
    assert run["template"]["name"] == "alpaca_short"
    assert run["settings"]["learning_rate"] == 1e-2 and run["versions"]["torch"]
    assert run["losses"].keys() >= {"train", "start", "best", "best_step"} and run["steps"] == 3
    assert run["speed"]["tokens_per_second"] > 0
    lineage.show(str(tmp_path / "out"))
    assert f"base: {stage['base_model']}" in (drawn := capsys.readouterr().out) and "alpaca_short" in drawn
    lineage.verify(str(tmp_path / "out"))


def test_metrics_have_a_line_a_step_and_the_curve_is_drawn(quick, tmp_path, train):
    train(**quick)
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(line["tokens"] > 0 and line["learning_rate"] > 0 for line in steps)
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 1, 2, 3]
    assert (tmp_path / "out/loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_adapter_saved_is_the_best_by_validation_loss(quick, family, tmp_path, train):
    more = {"num_epochs": 30, "lora_r": 16, "lora_target_modules": ALL_LINEAR[family]}
    train(**{**quick, **more})  # six rows soon learned by heart, at the cost of the two held out
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line and line["step"]}
    run = record.read(tmp_path / "out")
    best = min(scores, key=scores.get)
    assert run["losses"]["best_step"] == best != max(scores)
    final = load_file(tmp_path / "out" / "adapter_model.safetensors")
    last = tmp_path / "out" / f"checkpoint-{max(scores)}"
    kept, later = (load_file(last / name) for name in ("best_model.safetensors", "adapter_model.safetensors"))
    assert all(torch.equal(final[name], kept[name]) for name in final)
    assert any(not torch.equal(final[name], later[name]) for name in final)


@pytest.mark.parametrize("bits", ["load_8bit", "load_4bit"])
def test_an_evaluation_between_two_steps_changes_no_gradient(bits, base, family):
    flags = {"load_8bit": False, "load_4bit": False, bits: True}
    model = models.load_base(base, dtype="auto", device=torch.device("cpu"), **flags)
    model = models.add_lora(models.prepare_for_training(model), 4, 8, 0.0, ALL_LINEAR[family][:1])
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_()
    batch = {
        "input_ids": torch.arange(3, 30)[None],
        "attention_mask": torch.ones(1, 27),
        "labels": torch.arange(3, 30)[None],
    }

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model.train()
        training.label_loss(model, batch)[0].backward()
        return [tensor.grad.clone() for tensor in model.parameters() if tensor.grad is not None]

    before = gradients()
    model.eval()
    with torch.no_grad():
        training.label_loss(model, batch)
    after = gradients()
    assert len(before) == len(after) == 4 and all(tensor.any() for tensor in before)
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize("bits", ["load_8bit", "load_4bit"])
def test_a_quantised_base_trains_saves_and_answers_on_a_cpu(bits, quick, tmp_path, train):
    train(**{**quick, "load_8bit": False, bits: True})
    state = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    got = answers(
        ["你好吗？"], tmp_path, base_model=quick["base_model"], lora_weights=quick["output_dir"], **{bits: True}
    )
    assert got[0]["tokens"] > 0


@pytest.mark.parametrize(
    ("stored", "held"), [("float16", "bfloat16"), ("bfloat16", "bfloat16"), ("float32", "float32")]
)
def test_the_base_keeps_its_dtype_and_lora_is_float32(stored, held, family, tmp_path):
    folder = TINY[family](tmp_path / "base", layers=1)
    AutoModelForCausalLM.from_pretrained(folder).to(getattr(torch, stored)).save_pretrained(folder)
    model = models.load_base(folder, False, False, "auto", torch.device("cpu"))
    assert {tensor.dtype for tensor in model.parameters()} == {getattr(torch, held)}
    peft = models.add_lora(model, 4, 8, 0.0, ALL_LINEAR[family][:1])
    assert {tensor.dtype for name, tensor in peft.named_parameters() if "lora_" in name} == {torch.float32}
    forced = models.load_base(folder, False, False, "float32", torch.device("cpu"))
    assert forced.dtype == torch.float32


@pytest.mark.filterwarnings("error:.*was renamed from")
def test_an_old_adapter_without_run_json_answers_with_one_warning(stage, tmp_path, capsys):
    old = tmp_path / "downloaded"
    old.mkdir()
    source = Path(stage["output_dir"])
    torch.save(load_file(source / "adapter_model.safetensors"), old / "adapter_model.bin")
    config = json.loads((source / "adapter_config.json").read_text())
    kept = {key: config[key] for key in ("peft_type", "r", "target_modules", "task_type", "bias")}
    aged = {**kept, "lora_alpha": 16.0, "lora_dropout": 0.05, "enable_lora": None, "merge_weights": False}
    aged["base_model_name_or_path"] = "decapoda-research/llama-7b-hf"
    (old / "adapter_config.json").write_text(json.dumps(aged))
    flags = {"base_model": stage["base_model"], "lora_weights": str(old)}
    got = answers(questions(), tmp_path, prompt_template="alpaca_short", **flags)
    assert [row["output"] for row in got] == WANTED
    capsys.readouterr()
    answers(["你好吗？"], tmp_path, **flags)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1 and "no run.json" in warnings[0]


def test_another_template_than_the_recorded_one_is_a_warning(stage, tmp_path, capsys):
    flags = {"base_model": stage["base_model"], "lora_weights": stage["output_dir"], "prompt_template": "alpaca"}
    answers(["你好吗？"], tmp_path, **flags)
    assert "was trained with alpaca_short" in capsys.readouterr().err
