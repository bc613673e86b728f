"""The dry run: its figures against counts by hand, its memory estimate against memory that was measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ALL_LINEAR, both_families, write_rows
from datasets import Dataset
from tiny_models import ROWS, bpe_tokenizer, tiny_bloom, tiny_llama
from transformers import BloomConfig

import finetune
from utils import dataset, fast, memory, models, preview, training
from utils.batching import collate, collate_packed
from utils.errors import DataFault
from utils.prompter import Prompter

ROOT = Path(__file__).resolve().parent.parent
PROMPT = json.loads((ROOT / "test_data" / "01qa.json").read_text(encoding="utf-8"))[1]["instruction"]


def dry_run(flags: dict, rows: list[dict], tmp_path: Path, **others) -> None:
    finetune.train(**{**flags, "data_path": write_rows(tmp_path / "rows.json", rows), "dry_run": True, **others})


def test_the_figures_are_what_they_say(quick, tmp_path, capsys):
    spaced = {**ROWS[2], "output": f" {ROWS[2]['output']}　"}
    rows = [
        *ROWS,
        ROWS[1],
        spaced,
        {"instruction": f"{PROMPT} ", "output": "不知道"},
        {"instruction": "乱码", "output": "ä½\xa0å¥½"},
        {"instruction": "空的", "output": "……"},
        {"instruction": "长" * 300, "output": "好"},
    ]
    dry_run(quick, rows, tmp_path, val_set_size=0, cutoff_len=400, num_epochs=3)
    out = capsys.readouterr().out
    assert f"data: 14 of the 14 rows of {tmp_path / 'rows.json'}" in out
    assert "warning: duplicates: 2 rows repeat an earlier one (rows.json:1 as rows.json:1, " in out
    assert "warning: test_data: 1 rows ask what an evaluation prompt asks (rows.json:1 as 01qa.json 2)" in out
    assert "warning: mojibake: 1 rows look" in out
    assert "warning: empty: 1 answers have no letter and no digit" in out
    _, counts = dataset.encode(
        dataset.load_rows(str(tmp_path / "rows.json"))[0], bpe_tokenizer(), Prompter("alpaca"), 400, False
    )
    share = f"{counts['supervised'] / counts['tokens']:.1%}"
    assert f"tokens: {counts['tokens']} in 13 training rows, {share} of them supervised" in out
    assert f"answers: {counts['ended'] / 14:.1%} of 14 keep their end of sequence (--cutoff_len 400)" in out
    assert f"over-long: {counts['truncated']} rows are cut, 1 keep nothing to learn and are left out" in out
    plan = training.plan(13, 2, 3)
    assert f"steps: {plan.total}, warm-up {plan.warmup}, an evaluation and a checkpoint every {plan.every}" in out
    bars = [line.split() for line in out.splitlines() if line.startswith("  ") and not line.startswith("   |")]
    assert sum(int(line[2] if line[0] == "over" else line[1]) for line in bars) == 13
    assert "\nmemory: " in out and "GB are free" in out
    assert Path(f"{quick['output_dir']}.preview.png").read_bytes().startswith(b"\x89PNG")


@both_families
def test_nothing_is_left_in_output_dir_no_weights_are_read_and_the_tokens_are_the_runs(
    quick, train, tmp_path, capsys, monkeypatch
):
    def refused(*given, **settings):
        raise AssertionError("weights were loaded")

    with monkeypatch.context() as patch:
        patch.setattr(models, "load_base", refused)
        train(**quick, dry_run=True)
    assert not Path(quick["output_dir"]).exists()
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "_encoded_batches", refused)
        patch.setattr(dataset, "read_rows", refused)
        train(**quick)
    assert (Path(quick["output_dir"]) / "adapter_model.safetensors").exists()
    capsys.readouterr()
    train(**quick, dry_run=True)
    assert "steps: 3, " in capsys.readouterr().out


def test_a_dry_run_moves_no_run_away(quick, tmp_path):
    finetune.train(**quick)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    finetune.train(**quick, dry_run=True, overwrite=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*before, "out.preview.png"])


def test_what_training_refuses_a_dry_run_refuses(quick, tmp_path):
    with pytest.raises(DataFault, match=r'rows\.json:1: "output" is empty \(1 other broken rows: lines 1\)'):
        dry_run(quick, [*ROWS, {"instruction": "a", "output": ""}, {"instruction": "b"}], tmp_path)
    write_rows(tmp_path / "rows.json", ROWS)
    with pytest.raises(DataFault, match="--cutoff_len 3 leaves no answer of any"):
        finetune.train(**{**quick, "cutoff_len": 3, "dry_run": True})


def test_rows_are_shown_as_the_model_sees_them_with_the_masked_part_dimmed(tmp_path):
    tokenizer = bpe_tokenizer()
    rows, _ = dataset.load_rows(write_rows(tmp_path / "a.json", [{**ROWS[0], "output": "红\x1b[31m"}]))
    encoded, _ = dataset.encode(rows, tokenizer, Prompter("alpaca_short"), 256, False)
    plain = list(preview._row_lines(encoded[0], tokenizer, dim=False))
    assert plain == [
        "masked  | <s>### Instruction:",
        f"masked  | {ROWS[0]['instruction']}",
        "masked  | ",
        "masked  | ### Response:",
        "masked  | ",
        "learned | 红\\x1b[31m</s>",
    ]
    dimmed = list(preview._row_lines(encoded[0], tokenizer, dim=True))
    assert dimmed == [*(f"\033[2m{line}\033[0m" for line in plain[:-1]), plain[-1]]


@pytest.mark.parametrize(
    ("text", "garbled"),
    [
        ("你好，世界", False),
        ("卓越学堂 知识之窗", False),
        ("Café naïve résumé — “quoted” 25°C ½", False),
        ("Привет, 日本語テキスト, 한국어", False),
        ("你好世界".encode().decode("cp1252", "ignore"), True),
        ("你好世界".encode().decode("latin-1"), True),
        ("你好，世界，今天".encode().decode("gb18030", "ignore"), True),
        ("it isnâ€™t", True),
        ("锟斤拷", True),
        ("a\ufffdb", True),
    ],
)
def test_mojibake(text, garbled):
    assert preview.looks_garbled(text) == garbled


# Memory


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A tiny base, loaded and with LoRA, beside its empty copy."""
    folders = tmp_path_factory.mktemp("models")
    bases = {"llama": tiny_llama(folders / "llama", layers=4), "bloom": tiny_bloom(folders / "bloom", layers=4)}

    def build(dtype: str, dropout: float, targets: tuple[str, ...], is_fast: bool):
        folder = bases["llama" if "q_proj" in targets else "bloom"]
        real = models.load_base(folder, False, False, dtype, torch.device("cpu"))
        empty = models.add_lora(models.empty_base(folder), 8, 16, dropout, targets)
        return models.add_lora(real, 8, 16, dropout, targets, is_fast), empty

    return build


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.05, 0.0])
@pytest.mark.parametrize(
    "targets",
    [
        ("q_proj", "v_proj"),
        ("q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"),
        ("query_key_value",),
        ALL_LINEAR["bloom"],
    ],
    ids="-".join,
)
@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "plain"])
def test_the_activations_are_what_autograd_keeps(lora, dtype, dropout, targets, is_fast):
    real, empty = lora(dtype, dropout, targets, is_fast)
    flags = {"dtype": dtype, "lora_dropout": dropout, "load_8bit": False, "load_4bit": False, "fast": is_fast}
    rows, length = 4, 96
    kept: dict[int, int] = {}
    known = {tensor.data_ptr() for tensor in (*real.parameters(), *real.buffers())}
    held = []

    def keep(tensor):
        held.append(tensor)
        if (address := tensor.untyped_storage().data_ptr()) not in known:
            kept[address] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.randint(3, 300, (rows, length)).tolist()
    encoded = [{"input_ids": row, "labels": [-100] * (length - 2) + row[-2:]} for row in ids]
    encoded[1:] = [{name: values[:-1] for name, values in row.items()} for row in encoded[1:]]
    head = fast.prepare(real, torch.device("cpu")) if is_fast else None
    batch = collate_packed(encoded) if is_fast and fast.can_pack(real) else collate(encoded, 0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        training.label_loss(real, batch, head)
    number = memory._bytes_of_a_number(empty, flags, torch.device("cpu"))
    computed = rows * length * memory._kept_of_a_token(empty, length, number, flags, torch.device("cpu"))
    assert 0.8 * computed < sum(kept.values()) < 1.1 * computed  # the first layer keeps a little less


def test_the_estimate_holds_for_a_run_that_was_measured(quick, tmp_path):
    """The libraries' share is by far the larger one here; scripts/bench/memory.py measures a real model."""
    rows = [{**row, "output": row["output"] * 30} for row in ROWS]
    flags = {**quick, "data_path": write_rows(tmp_path / "long.json", rows), "val_set_size": 0}
    flags |= {"batch_size": 8, "micro_batch_size": 8, "cutoff_len": 512}

    def run(*more: str) -> tuple[str, int]:
        code = (
            "import runpy, sys; from pathlib import Path; sys.argv = sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "print('peak', Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
        )
        command = [sys.executable, "-c", code, str(ROOT / "finetune.py"), *(f"--{k}={v}" for k, v in flags.items())]
        out = subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout
        return out, 1024 * int(out.split()[-1])

    shown = run("--dry_run")[0]
    estimate = float(shown.partition("memory: ")[2].split()[0]) * 1e9
    _, measured = run()
    assert 0.9 * measured < estimate < 1.3 * measured


def test_a_bloom_of_100_million_beside_its_vocabulary_is_to_take_under_6_gb(tmp_path):
    """What scripts/bench/memory.py measures of it, by the same arithmetic, here without the libraries."""
    BloomConfig(vocab_size=250_880, hidden_size=768, n_layer=14, n_head=12, dtype="float32").save_pretrained(tmp_path)
    model = models.add_lora(models.empty_base(tmp_path), 8, 16, 0.05, ("query_key_value",))
    flags = {"dtype": "auto", "lora_dropout": 0.05, "load_8bit": False, "load_4bit": False, "fast": True}
    flags |= {"micro_batch_size": 4, "cutoff_len": 256}
    rows = Dataset.from_dict({"length": [256] * 8, "supervised": [200] * 8})
    parts = memory.estimate(model, rows, flags, torch.device("cpu"))
    held = sum(size for name, size in parts.items() if name != "libraries")
    assert 1.15e9 < parts["weights"] < 1.2e9 and parts["logits"] < 4 * 3 * 4 * 256 * 250_880
    assert held < 5e9
    plain = memory.estimate(model, rows, {**flags, "fast": False}, torch.device("cpu"))
    assert plain["logits"] > 2 * parts["logits"]


def test_a_run_that_does_not_fit_is_told_what_would():
    flags = {"batch_size": 8, "micro_batch_size": 8, "cutoff_len": 256, "load_8bit": False, "load_4bit": False}

    def needed(changed: dict) -> int:
        return changed["micro_batch_size"] * changed["cutoff_len"] * (1 if changed["load_4bit"] else 2)

    assert memory.advice(needed, flags, 2100) == "--micro_batch_size 4 would take 0.00 GB"
    assert memory.advice(needed, flags, 300).startswith("--micro_batch_size 1 --load_4bit True would take")
    assert memory.advice(needed, flags, 130).startswith("--micro_batch_size 1 --load_4bit True --cutoff_len 128 would")
    assert memory.advice(needed, flags, 10).startswith("no flag makes it fit")


def test_too_little_memory_is_a_warning(quick, capsys, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda *_: 10_000_000)
    finetune.train(**quick, dry_run=True)
    assert "warning: this does not fit: no flag makes it fit" in capsys.readouterr().out
