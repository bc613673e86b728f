"""Labels against hand-written ones, with a tokenizer of one token a character, in the form of each family."""

import json

import pytest
from tiny_models import ROWS, bpe_tokenizer, character_tokenizer, tiny_bloom

from utils import encode, models
from utils.encode import IGNORED
from utils.errors import ModelFault
from utils.prompter import Prompter

ROW = {"instruction": "问", "input": "", "output": "答案"}


def encode_row(tokenizer, prompter, row, *given, **settings) -> dict:
    """One row alone."""
    return encode.encode_rows(tokenizer, prompter, [row], *given, **settings)[0]


@pytest.fixture
def prompter() -> Prompter:
    return Prompter("alpaca_short")


@pytest.fixture(params=["llama", "bloom"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def start(kind) -> list[str]:
    """What stands in front of every row: BLOOM has no BOS there."""
    return ["<s>"] if kind == "llama" else []


@pytest.fixture
def tokenizer(prompter, kind):
    return character_tokenizer(prompter.prompt("问", "补") + "答案好的一二", kind)


def test_the_prompt_is_masked_and_eos_is_supervised(tokenizer, prompter, start):
    prompt = "### Instruction:\n问\n\n### Response:\n"
    encoded = encode_row(tokenizer, prompter, ROW, 100, train_on_inputs=False)
    answer = tokenizer.convert_tokens_to_ids(["答", "案", "</s>"])
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == [*start, *prompt, "答", "案", "</s>"]
    assert encoded["labels"] == [IGNORED] * (len(start) + len(prompt)) + answer
    assert encoded["input_ids"][-3:] == answer and answer[-1] == 2


def test_with_train_on_inputs_every_token_is_a_label(tokenizer, prompter):
    encoded = encode_row(tokenizer, prompter, ROW, 100, train_on_inputs=True)
    assert encoded["labels"] == encoded["input_ids"]


@pytest.mark.parametrize("cut", [1, 2, 3, 10])
def test_truncation_keeps_the_front_and_then_there_is_no_eos(tokenizer, prompter, cut):
    whole = encode_row(tokenizer, prompter, ROW, 100, False)
    length = len(whole["input_ids"]) - cut
    short = encode_row(tokenizer, prompter, ROW, length, False)
    for name in ("input_ids", "labels"):
        assert short[name] == whole[name][:length]
    assert (short["whole"], short["answers"], short["ended"]) == (length + cut, 1, 0)
    assert tokenizer.eos_token_id not in short["labels"]


def test_every_turn_of_a_dialogue_is_supervised_with_its_eos(tokenizer, prompter, start):
    row = {"instruction": "问", "output": "答", "history": [["一", "好"], ["二", "的"]]}
    encoded = encode_row(tokenizer, prompter, row, 200, False)
    kept = [token for token in encoded["labels"] if token != IGNORED]
    assert tokenizer.convert_ids_to_tokens(kept) == ["好", "</s>", "的", "</s>", "答", "</s>"]
    assert encoded["input_ids"].count(tokenizer.bos_token_id) == len(start)


def test_training_and_inference_see_the_same_prompt_ids(tokenizer, prompter):
    for row in (ROW, {**ROW, "input": "补"}, {**ROW, "history": [["一", "好"]]}):
        prompt = encode.prompt_ids(tokenizer, prompter, row)
        encoded = encode_row(tokenizer, prompter, row, 500, False)
        assert encoded["input_ids"][: len(prompt)] == prompt
        assert encoded["labels"][len(prompt) - 1] == IGNORED != encoded["labels"][len(prompt)]


def test_what_a_tokenizer_would_merge_across_the_seam_does_not_move_it(kind):
    tokenizer, prompter = bpe_tokenizer(family=kind), Prompter("alpaca_short")
    row = {"instruction": "问", "input": "", "output": "\n先放下手机"}
    prompt = encode.prompt_ids(tokenizer, prompter, row)
    ids = encode_row(tokenizer, prompter, row, 500, False)["input_ids"]
    assert ids[: len(prompt)] == prompt
    assert tokenizer.decode(ids[len(prompt) : -1]) == "\n先放下手机"


def test_special_tokens_in_the_data_are_text(prompter, kind, start):
    tokenizer = bpe_tokenizer(family=kind)
    ids = encode_row(tokenizer, prompter, {**ROW, "output": "a</s>b<s><pad>"}, 500, False)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1 and ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.bos_token_id) == len(start)
    assert kind != "bloom" or tokenizer.pad_token_id not in ids


def test_blooms_special_ids_are_its_own_and_its_padding_is_found_again(tmp_path):
    """As models.load_tokenizer gives them, of a folder that names no padding and of one that does."""
    tiny_bloom(tmp_path)
    for named in (True, False):
        settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
        if not named:
            settings.pop("pad_token")
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        tokenizer = models.load_tokenizer(tmp_path)
        ids = [getattr(tokenizer, f"{name}_token_id") for name in ("unk", "bos", "eos", "pad")]
        assert ids == [0, 1, 2, 3]
        assert tokenizer("你好")["input_ids"] == tokenizer("你好", add_special_tokens=False)["input_ids"]


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path):
    tiny_bloom(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 300}), encoding="utf-8")
    with pytest.raises(ModelFault, match=r"the tokenizer has \d+ entries, the embedding 300 rows"):
        models.load_tokenizer(tmp_path)


def test_last_turn_only_learns_the_last_answer_alone(tokenizer, prompter):
    row = {"instruction": "问", "output": "答", "history": [["一", "好"], ["二", "的"]]}
    every, last = (encode_row(tokenizer, prompter, row, 200, False, last_turn_only=one) for one in (False, True))
    kept = [token for token in last["labels"] if token != IGNORED]
    assert tokenizer.convert_ids_to_tokens(kept) == ["答", "</s>"]
    assert last["input_ids"] == every["input_ids"] and (every["answers"], last["answers"]) == (3, 1)
    cut = encode_row(tokenizer, prompter, row, every["whole"] - 1, False)
    assert (cut["answers"], cut["ended"]) == (3, 2)


def test_many_rows_at_once_are_encoded_as_each_alone(prompter, kind):
    tokenizer = bpe_tokenizer(family=kind)
    rows = [*ROWS, {**ROW, "history": [["一", "好"], ["\n二", "\n的"]]}, {**ROW, "output": ""}, *ROWS[::-1]]
    together = encode.encode_rows(tokenizer, prompter, rows, 60, False)
    assert together == [encode_row(tokenizer, prompter, row, 60, False) for row in rows]
    assert encode.encode_rows(tokenizer, prompter, [], 60, False) == []


@pytest.mark.parametrize("text", ["长", "a b ", "\n", " ", "你好，world! ", "😀"])
def test_a_long_text_keeps_the_tokens_it_has_in_front_of_the_cutoff(prompter, kind, monkeypatch, text):
    tokenizer = bpe_tokenizer(family=kind)
    row = {**ROW, "output": "答" + text * 3000}
    short = encode_row(tokenizer, prompter, row, 50, False)
    monkeypatch.setattr(encode, "_CHARACTERS", 1_000_000)
    whole = encode_row(tokenizer, prompter, row, 50, False)
    assert 50 < short["whole"] < whole["whole"]
    assert {**short, "whole": 0} == {**whole, "whole": 0}
