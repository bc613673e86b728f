"""Batch answers: inputs, batches, one rule for what lies in the place of test.json, runs that are killed."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import ends
from conftest import write_rows
from tiny_models import KNOWN, ROWS

import generate
from utils import adapters, answers, batch, checkpoint, generation, models
from utils.errors import DataFault, EnvironmentFault, ModelFault

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
PROMPTS = [row["instruction"] for row in KNOWN]


def flags(stage: dict, folder: Path, **more) -> dict:
    if not (folder / "prompts.json").exists():
        write_rows(folder / "prompts.json", PROMPTS)
    return {
        "base_model": stage["base_model"],
        "lora_weights": stage["output_dir"],
        "is_ui": False,
        "test_input_path": str(folder / "prompts.json"),
        "output_path": str(folder / "test.json"),
        "max_new_tokens": 12,
        "batch_tokens": 400,
        **more,
    }


def result(folder: Path) -> list[dict]:
    """The rows of test.json without the seconds."""
    rows = json.loads((folder / "test.json").read_text(encoding="utf-8"))
    assert all(isinstance(row.pop("seconds"), float) for row in rows)
    return rows


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """The sizes of the batches that the model has answered."""
    sizes = []
    original = generation.answer_batch
    monkeypatch.setattr(generation, "answer_batch", lambda *given: sizes.append(len(given[2])) or original(*given))
    return sizes


@pytest.fixture(scope="module")
def undisturbed(stage, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("undisturbed")
    generate.main(**flags(stage, folder))
    return result(folder)


def test_test_json_lies_in_the_adapters_folder_as_utf8_in_order(stage, tmp_path):
    prompts = [*(row["instruction"] for row in ROWS[::-1]), {"instruction": "问", "reference": "r", "input": ""}]
    given = flags(stage, tmp_path, test_input_path=write_rows(tmp_path / "p.json", prompts), output_path="")
    target = Path(stage["output_dir"]) / "test.json"
    try:
        generate.main(**given)
        raw = target.read_text(encoding="utf-8")
    finally:
        target.unlink()
        target.with_name("test.json.journal").unlink()
    assert "中国的首都" in raw and "\\u" not in raw
    rows = json.loads(raw)
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in ROWS[::-1]] + ["问"]
    assert rows[-1]["reference"] == "r" and rows[-1].keys() >= {"output", "finish_reason", "tokens", "seconds"}


def test_json_lines_and_a_folder_with_its_categories(stage, tmp_path):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    write_rows(prompts / "02b.json", [PROMPTS[2], {"instruction": PROMPTS[3], "category": "own"}])
    lines = [json.dumps(text, ensure_ascii=False) for text in PROMPTS[:2]]
    (prompts / "01a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (prompts / "README.md").write_text("no prompts")
    generate.main(**flags(stage, tmp_path, test_input_path=str(prompts)))
    rows = result(tmp_path)
    assert [row["category"] for row in rows] == ["01a", "01a", "02b", "own"]
    assert [row["instruction"] for row in rows] == PROMPTS[:4]


def test_keys_that_nothing_reads_are_named_once_with_counts(stage, tmp_path, capsys):
    rows = [{"instruction": text, "histroy": [["a", "b"]], "output": "x", "id": 7} for text in PROMPTS[:2]]
    path = write_rows(tmp_path / "p.json", [*rows, {"instruction": PROMPTS[2], "id": 8, "reference": "r"}])
    generate.main(**flags(stage, tmp_path, test_input_path=path))
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")] == [
        f'warning: {path}: keys that are not used, only copied into the answers: "id" (3 rows), "histroy" (2 rows)',
        f'warning: {path}: the "output" of 2 rows gives place to the answer (a "reference" is kept)',
    ]
    assert [row["id"] for row in result(tmp_path)] == [7, 7, 8]


def test_without_a_folder_of_its_own_an_adapter_or_base_has_one_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    (tmp_path / "adapter").mkdir()
    base = str(tmp_path / "models" / "base")
    for adapter, of, folder in [
        ("adapter", base, "adapter"), ("", base, "answers-base"), ("", f"{base}/", "answers-base"),
        ("", "some/model", "answers-some--model"), ("some/adapter", base, "answers-some--adapter"),
    ]:  # fmt: skip
        assert answers.output_file("", adapter, of) == Path(folder) / "test.json" and Path(folder).is_dir()


def test_batches_are_as_large_as_their_tokens_allow_and_the_longest_go_first():
    prompts = [[0] * length for length in (5, 90, 10, 40, 10, 38)]
    assert batch.plan(prompts, 10, 100) == [[1], [3, 5], [2, 4, 0]]
    assert batch.plan(prompts, 10, 1) == [[1], [3], [5], [2], [4], [0]]


def test_the_answers_do_not_depend_on_the_batches(stage, undisturbed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(batch, "EVERY", 0)  # a log in place of a bar
    generate.main(**flags(stage, tmp_path, batch_tokens=1))
    told = re.findall(r"^(\d+) of 18 answered, \d+ tokens/s, \d+ minutes left$", capsys.readouterr().out, re.M)
    assert told == [str(number) for number in range(1, 19)]
    assert result(tmp_path) == undisturbed
    assert {row["finish_reason"] for row in undisturbed} == {"stop", "length"}


def test_drawn_answers_do_not_depend_on_the_place_in_the_file(stage, tmp_path):
    drawn = {"temperature": 1.5, "top_p": 1.0, "top_k": 200}
    generate.main(**flags(stage, tmp_path, **drawn))
    rows = {row["instruction"]: row["output"] for row in result(tmp_path)}
    other = tmp_path / "other"
    other.mkdir()
    write_rows(other / "prompts.json", PROMPTS[::-2])
    generate.main(**flags(stage, other, **drawn))
    assert [row["output"] for row in result(other)] == [rows[text] for text in PROMPTS[::-2]]


def test_a_run_goes_on_with_what_is_missing_and_ends_like_one_that_nobody_disturbed(
    stage, undisturbed, counted, tmp_path, monkeypatch, capsys
):
    given = flags(stage, tmp_path)
    add = answers.Target.add

    def die(self, found):
        add(self, found)
        if len(self.done) > 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(answers.Target, "add", die)
    with pytest.raises(KeyboardInterrupt):
        generate.main(**given)
    before = sum(counted)
    assert not (tmp_path / "test.json").exists() and 5 < before < len(PROMPTS)
    with open(tmp_path / "test.json.journal", "ab") as journal:
        journal.write(b'{"answers": {"3": {"outp')  # a kill in the middle of a line
    monkeypatch.setattr(answers.Target, "add", add)
    generate.main(**given)
    assert f"{before} of {len(PROMPTS)} prompts are answered" in capsys.readouterr().out
    assert sum(counted) == len(PROMPTS)
    assert result(tmp_path) == undisturbed
    monkeypatch.setattr(models, "load_base", lambda *_: pytest.fail("the base model was loaded"))
    written = (tmp_path / "test.json").read_bytes()
    generate.main(**given)
    assert "already complete" in capsys.readouterr().out
    assert (tmp_path / "test.json").read_bytes() == written
    (tmp_path / "test.json").unlink()  # the journal has it all
    (tmp_path / ".part-test.json.x").write_text("[")  # a kill while it was written
    generate.main(**given)
    assert (tmp_path / "test.json").read_bytes() == written and not list(tmp_path.glob(".part-*"))


@pytest.mark.parametrize(
    "change, named",
    [
        ({"max_new_tokens": 13}, "--max_new_tokens: 12 -> 13"),
        ({"temperature": 0.5, "seed": 1}, "--temperature: 0.0 -> 0.5; --seed: 42 -> 1"),
        ({"stop": "。"}, '--stop: "" -> 。'),
        ({"lora_weights": ""}, 'adapter: .* -> ""'),
        ({"prompt_template": "alpaca"}, "template: alpaca_short .* -> alpaca "),
        ({"prompts": ["别的"]}, "prompts: 18 .* -> 1 "),
    ],
)
def test_anything_else_is_refused_with_the_difference_named(change, named, stage, tmp_path, monkeypatch, capsys):
    given = flags(stage, tmp_path, prompt_template="alpaca_short")
    generate.main(**{**given, "max_new_tokens": 12})
    before = (tmp_path / "test.json").read_bytes()
    if "prompts" in change:
        write_rows(tmp_path / "prompts.json", change["prompts"])
        change = {}
    monkeypatch.setattr(models, "load_base", lambda *_: pytest.fail("the base model was loaded"))
    argv = [f"--{name}={value}" for name, value in {**given, **change}.items()]
    code, _, line = ends(generate.main, argv, monkeypatch, capsys, "generate.py")
    assert code == 4 and line.endswith("--overwrite moves them away\n")
    assert re.search(f"test.json holds other answers \\(.*{named}", line)
    assert (tmp_path / "test.json").read_bytes() == before


def test_an_adapter_at_another_scale_is_another_adapter(stage, tmp_path):
    adapter = shutil.copytree(stage["output_dir"], tmp_path / "adapter")
    given = flags(stage, tmp_path, lora_weights=str(adapter))
    generate.main(**given)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] * 2}))
    with pytest.raises(ModelFault, match=r"holds other answers \(adapter: "):
        generate.main(**given)


def test_a_checkpoint_answers_with_its_runs_template_beside_it_and_stays_whole(stage, tmp_path, capsys):
    run = shutil.copytree(stage["output_dir"], tmp_path / "run")
    folder = checkpoint.newest_checkpoint(run)
    write_rows(tmp_path / "prompts.json", [ROWS[0]["instruction"]])
    generate.main(**flags(stage, tmp_path, lora_weights=str(folder), output_path="", max_new_tokens=40))
    assert capsys.readouterr().err.count("warning") == 0  # its template and base are known
    rows = json.loads((run / f"test-{folder.name}.json").read_text(encoding="utf-8"))
    assert [row["output"] for row in rows] == [ROWS[0]["output"]]
    assert checkpoint.checkpoint_problem(folder) is None


def test_a_file_that_is_not_ours_is_refused_and_overwrite_moves_it_away(stage, tmp_path):
    given = flags(stage, tmp_path)
    (tmp_path / "test.json").write_text("mine")
    with pytest.raises(ModelFault, match="nothing tells what made it"):
        generate.main(**given)
    generate.main(**given, overwrite=True)
    assert (tmp_path / "test.json.old-1").read_text() == "mine"
    rows = result(tmp_path)
    (tmp_path / "test.json").write_text("changed")
    with pytest.raises(ModelFault, match="not what was written"):
        generate.main(**given)
    generate.main(**given, overwrite=True)
    assert (tmp_path / "test.json.old-2").read_text() == "changed" and result(tmp_path) == rows
    assert (tmp_path / "test.json.journal.old-1").exists()


GOOD = '"output": "a", "finish_reason": "stop", "tokens": 1, "seconds": 0.1'


@pytest.mark.parametrize(
    "line",
    ["garbage", "3", '{"answers": 3}', '{"answers": {"0": "a"}}', '{"answers": {"0": {"output": "a"}}}', "{}"]
    + [f'{{"answers": {{"{index}": {{{GOOD}}}}}}}' for index in ("2", "-1", "x")],
)
def test_a_line_that_is_not_of_a_journal_is_named(line, tmp_path):
    asked = {"prompts": {"count": 2}, "base model": "", "adapter": "", "template": {}, "settings": {}}
    where = tmp_path / "test.json.journal"
    where.write_text(f'{json.dumps(asked)}\n{{"answers": {{"1": {{{GOOD}}}}}}}\n')
    assert answers._read(where)[1].keys() == {1}
    where.write_text(f"{where.read_text()}{line}\n")
    with pytest.raises(DataFault, match=r"test\.json\.journal:3: no line of a journal of answers; --overwrite"):
        answers.Target(tmp_path / "test.json", asked, ["a", "b"], False)


def test_two_runs_at_once_are_refused(stage, tmp_path):
    target = answers.Target(tmp_path / "test.json", {"prompts": {}, "settings": {}}, ["a"], False)
    for overwrite in (False, True):
        with pytest.raises(EnvironmentFault, match="written by another run"):
            generate.main(**flags(stage, tmp_path, overwrite=overwrite))
    target._journal.close()


def test_a_batch_that_is_too_large_is_halved_with_one_line(stage, undisturbed, counted, tmp_path, monkeypatch, capsys):
    original = generation.answer_batch

    def small(*given):
        if len(given[2]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*given)

    monkeypatch.setattr(generation, "answer_batch", small)
    generate.main(**flags(stage, tmp_path))
    assert result(tmp_path) == undisturbed and max(counted) == 2
    lines = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert 1 <= len(lines) <= 3


def test_one_prompt_that_is_too_large_ends_the_run(stage, tmp_path, monkeypatch, capsys):
    def never(*given):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(generation, "answer_batch", never)
    argv = [f"--{name}={value}" for name, value in flags(stage, tmp_path).items()]
    code, _, line = ends(generate.main, argv, monkeypatch, capsys, "generate.py")
    assert code == 5 and "out of memory with one prompt of" in line and "--load_8bit" in line


def test_a_single_adapter_becomes_part_of_the_weights_and_a_quantised_base_keeps_it_beside(stage):
    folder = {"adapter0": Path(stage["output_dir"])}
    merged = adapters.apply_adapters(models.load_base(stage["base_model"], False, False, "auto", CPU), folder)
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    beside = adapters.apply_adapters(models.load_base(stage["base_model"], True, False, "auto", CPU), folder)
    assert any("lora_" in name for name, _ in beside.named_parameters())


def test_a_run_that_is_killed_goes_on(stage, undisturbed, tmp_path):
    """One kill -9 of a whole command line; scripts/bench/answer_kills.py makes as many as one likes."""
    given = flags(stage, tmp_path, batch_tokens=1)
    command = [sys.executable, str(ROOT / "generate.py"), *(f"--{name}={value}" for name, value in given.items())]
    journal = tmp_path / "test.json.journal"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    while process.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < 3):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9 and not (tmp_path / "test.json").exists()
    generate.main(**given)
    assert result(tmp_path) == undisturbed
    assert not list(tmp_path.glob(".part-*"))
