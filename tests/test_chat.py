"""Conversations: what a request may hold, how the history is cut, which adapter answers, what is kept of them."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny_models import KNOWN, ROWS

from utils import adapters, chat, generation, models, record, rows, tuned
from utils.chat import Chat
from utils.errors import DataFault
from utils.generation import Sampling

SETTINGS = {"temperature": 0.0, "top_p": 0.75, "top_k": 40, "num_beams": 1, "max_new_tokens": 40, "seed": 42}


@pytest.fixture(scope="module")
def talk(stage, silent) -> Chat:
    base = tuned.read_base(stage["base_model"])
    choices = tuned.read_tuned(f"{stage['output_dir']},{silent}", "", base)
    model = models.load_base(base["path"], False, False, "auto", torch.device("cpu"))
    model = adapters.apply_adapters(model, tuned.folders(choices))
    tokenizer = models.load_tokenizer(base["path"])
    assistants = generation.assistants(model, tokenizer, choices, Sampling(max_new_tokens=40))
    return Chat(assistants, {one.name: one.about for one in choices})


def last(talk: Chat, name: str, instruction, input="", history=(), **settings) -> chat.Piece:
    *_, piece = talk.respond(name, instruction, input, list(history), {**SETTINGS, **settings})
    return piece


def test_each_adapter_answers_for_itself_even_in_turns(talk):
    assert talk.names == ["adapter", "silent"]
    expected = {"adapter": ROWS[0]["output"], "silent": KNOWN[0]["output"]}
    both = {name: talk.respond(name, ROWS[0]["instruction"], "", [], SETTINGS) for name in talk.names}
    ends = dict.fromkeys(talk.names, "")
    while both:
        for name in list(both):
            piece = next(both[name], None)
            if piece is None:
                del both[name]
            else:
                ends[name] = piece.text
    assert ends == expected


def test_the_lineage_is_told(talk, stage):
    base = Path(stage["base_model"]).name
    assert talk.about("adapter").startswith(f"{base} → adapter (stage 1: rows.json, 8 rows")
    assert "template alpaca_short" in talk.about("adapter")
    run = record.read(Path(stage["output_dir"]))
    assert tuned._about(None, {"path": Path("a/b")}, generation.Prompter("alpaca")) == "b · template alpaca" and run


def test_history_reaches_the_model_and_is_cut_by_tokens_from_the_front(talk, monkeypatch):
    assistant = talk._assistants["adapter"]
    seen = []
    respond = type(assistant).respond
    monkeypatch.setattr(
        type(assistant), "respond", lambda self, *given, **more: seen.append(given) or respond(self, *given, **more)
    )
    short = [["你好吗？", "很好"]]
    assert last(talk, "adapter", "一加一等于几？", history=[*short, ["停在第一个词之前", ""]]).notice == ""
    assert seen[-1][2] == short
    long = [[f"第{number}问" + "天" * 30, "答" * 30] for number in range(12)]
    piece = last(talk, "adapter", "一加一等于几？", history=long)
    kept = seen[-1][2]
    skipped = len(long) - len(kept)
    assert 0 < skipped < len(long) and kept == long[skipped:]
    assert f"the first {skipped} turns are left out" in piece.notice and f"最早的 {skipped} 轮已略去" in piece.notice
    room = 512 - 40
    row = {"instruction": "一加一等于几？", "input": ""}
    assert len(assistant.prompt_ids({**row, "history": kept})) <= room
    assert len(assistant.prompt_ids({**row, "history": long[skipped - 1 :]})) > room


@pytest.mark.parametrize(
    "instruction, settings, message",
    [
        ("  ", {}, "The message is empty"),
        (None, {}, "The message is empty"),
        (["一"], {}, "message must be text"),
        ({"path": "/etc/passwd"}, {}, "message must be text"),
        (7, {}, "message must be text"),
        ("a\0", {}, "NUL"),
        ("a\ud800", {}, "half a character"),
        ("长" * 100_001, {}, "100001 characters"),
        ("长" * 600, {}, "模型的上下文只有 512。The prompt has .* tokens, the model's context 512"),
        ("你", {"temperature": "hot"}, "temperature must be a number"),
        ("你", {"temperature": True}, "temperature must be a number"),
        ("你", {"temperature": float("nan")}, "temperature must be a number"),
        ("你", {"temperature": 2.1}, "temperature: 2.1 is not between 0.0 and 2.0"),
        ("你", {"temperature": 1e-9}, "neither 0 .* nor 0.01"),
        ("你", {"temperature": 1, "num_beams": 2}, "choose one"),
        ("你", {"top_p": 0}, "top_p: 0 is not between"),
        ("你", {"top_k": 1.5}, "top_k: 1.5 is not a whole number"),
        ("你", {"num_beams": 9}, "num_beams: 9 is not between 1 and 8"),
        ("你", {"max_new_tokens": 10**9}, "max_new_tokens: 1000000000 is not between"),
        ("你", {"seed": -1}, "seed: -1 is not between 0 and 4294967295"),
        ("你", {"seed": None}, "seed must be a number"),
    ],
)
def test_what_is_no_request_is_refused_in_one_line(instruction, settings, message, talk):
    with pytest.raises(DataFault, match=message) as caught:
        last(talk, "adapter", instruction, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "other", None, ["adapter"], 3, "../adapter"])
def test_an_unknown_adapter_is_refused(name, talk):
    with pytest.raises(DataFault, match="unknown model; there are adapter, silent"):
        last(talk, name, "你")
    with pytest.raises(DataFault):
        talk.about(name)


def test_whatever_else_goes_wrong_is_one_line_here_and_there(talk, monkeypatch, capsys):
    def broken(self):
        raise RuntimeError("inside\nand more")

    monkeypatch.setattr(generation.Decoder, "step", broken)
    with pytest.raises(DataFault, match=r"The answer failed: RuntimeError: inside$"):
        last(talk, "adapter", "你")
    assert capsys.readouterr().err == "an answer failed: RuntimeError: inside\n"
    monkeypatch.undo()
    assert last(talk, "adapter", "一加一等于几？").text == "2"


def test_defaults_beyond_the_usual_ranges_are_allowed_as_given(talk):
    assistant = talk._assistants["adapter"]
    wide = generation.Assistant(assistant.model, assistant.tokenizer, assistant.prompter, Sampling(num_beams=12))
    assert Chat({"a": wide}, {"a": ""}).ranges["num_beams"] == (1, 12)


def test_a_conversation_is_kept_as_rows_that_training_reads(tmp_path):
    turns = [["你好", "您好！"], ["没有回答", ""], ["再见", "\n  再见"]]
    path = tmp_path / "conversation.json"
    path.write_text(chat.training_rows(turns), encoding="utf-8")
    (row,) = rows.read_rows(path, Counter())
    assert row == {"instruction": "再见", "input": "", "output": "\n  再见", "history": [["你好", "您好！"]], "line": 2}
    assert json.loads(chat.training_rows([])) == [] == json.loads(chat.training_rows([["问", " "]]))


def test_examples_are_evaluation_prompts_one_of_each_category_in_turn():
    found = chat.examples(12)
    files = [rows.read_prompts(path) for path in rows.prompt_files(chat.EXAMPLES) if path.stem != "08alignment"]
    firsts = [file[0] for file in files if not file[0].get("history")]
    assert [text for text, _ in found[: len(firsts)]] == [row["instruction"] for row in firsts]
    assert len(found) == len(set(found)) == 12


def test_two_folders_of_one_name_are_told_apart(stage, silent, tmp_path):
    twin = tmp_path / "second" / "silent"
    shutil.copytree(silent, twin)
    base = tuned.read_base(stage["base_model"])
    choices = tuned.read_tuned(f"{silent},{twin}", "", base)
    assert [one.name for one in choices] == ["silent", "second/silent"]
