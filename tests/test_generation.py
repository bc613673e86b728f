"""Answers: batches, streams, sampling; what reaches a reader and what does not."""

from itertools import pairwise, zip_longest
from pathlib import Path

import pytest
import torch
from conftest import write_rows
from tiny_models import ROWS

import generate
from utils import adapters, decoding, generation, models
from utils.callbacks import Iteratorize
from utils.errors import ArgumentFault, DataFault
from utils.generation import Assistant, Sampling
from utils.prompter import Prompter


@pytest.fixture(scope="module")
def assistant(stage) -> Assistant:
    base = Path(stage["base_model"])
    model = models.load_base(base, False, False, "auto", torch.device("cpu"))
    model = adapters.apply_adapter(model, Path(stage["output_dir"]))
    return Assistant(model, models.load_tokenizer(base), Prompter("alpaca_short"), Sampling(max_new_tokens=40))


def test_a_stream_grows_to_the_batch_answer(assistant):
    for row in ROWS:
        texts = list(assistant.respond(row["instruction"], row["input"]))
        assert texts[-1] == row["output"]
        assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
        assert not any("\ufffd" in text for text in texts)


def test_settings_reach_the_model_by_name(assistant, monkeypatch):
    seen = {}

    def decoder(model, prompts, sampling, pad, guess):
        seen.update(vars(sampling))
        raise StopIteration

    monkeypatch.setattr(generation, "Decoder", decoder)
    settings = {"temperature": 0.5, "top_p": 0.6, "top_k": 7, "num_beams": 1, "max_new_tokens": 9, "seed": 3}
    with pytest.raises(RuntimeError):
        next(assistant.respond("a", "", **settings))
    assert {name: seen[name] for name in settings} == settings


def test_sampling_follows_the_seed(assistant):
    prompt = [assistant.prompt_ids({"instruction": "随便说点什么"})]

    def text(seed: int) -> str:
        sampling = Sampling(temperature=2.0, top_p=1.0, top_k=400, max_new_tokens=20, seed=seed)
        return generation.answer_batch(assistant.model, assistant.tokenizer, prompt, sampling)[0]["output"]

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(5)}) > 1


def test_beams_answer_too_and_show_it_once(assistant):
    texts = list(assistant.respond("一加一等于几？", "", num_beams=3))
    assert texts[-1] == "2" and set(texts[:-1]) == {""}
    with pytest.raises(ArgumentFault, match="choose one"):
        assistant.respond("一加一等于几？", "", num_beams=3, temperature=1.0)


def test_a_beam_search_near_the_contexts_end_cuts_no_other_short(assistant):
    prompts = [assistant.prompt_ids({"instruction": text}) for text in ("我睡不着怎么办？", "长" * 40)]
    sampling = Sampling(num_beams=2, max_new_tokens=30)

    def outputs(*prompts: list[int]) -> list[tuple]:
        found = generation.answer_batch(assistant.model, assistant.tokenizer, list(prompts), sampling, context)
        return [(answer["output"], answer["finish_reason"]) for answer in found]

    context = len(prompts[1]) + 2
    assert outputs(*prompts) == [*outputs(prompts[0]), *outputs(prompts[1])]


def test_a_beam_search_lets_others_in_between_its_steps(assistant, monkeypatch):
    """A search for a long answer would hold up everybody else for as long as it takes."""
    question = {"instruction": "我睡不着怎么办？", "num_beams": 2, "max_new_tokens": 400}
    alone = list(assistant.respond(**question))[-1]
    steps = []
    call = generation.Stream.__call__
    monkeypatch.setattr(
        generation.Stream, "__call__", lambda self, *given, **more: steps.append(1) or call(self, *given, **more)
    )
    search = assistant.respond(**question)
    next(search)
    assert list(assistant.respond("一加一等于几？", ""))[-1] == "2"
    done = len(steps)
    assert list(search)[-1] == alone and len(steps) > done, "it was still going on"


def test_who_leaves_a_beam_search_ends_it_and_frees_the_model(assistant):
    words = assistant.respond("一加一等于几？", "", num_beams=3, max_new_tokens=400)
    next(words)
    words.close()
    assert list(assistant.respond("一加一等于几？", ""))[-1] == "2"


def test_who_stops_reading_stops_the_model(assistant, monkeypatch):
    steps = []
    step = decoding.Decoder.step
    monkeypatch.setattr(decoding.Decoder, "step", lambda self: steps.append(1) or step(self))
    words = assistant.respond("我睡不着怎么办？", "")
    next(words), next(words)
    words.close()
    assert len(steps) == 2
    assert list(assistant.respond("一加一等于几？", ""))[-1] == "2"


def test_two_answers_that_grow_in_turn_are_those_that_grow_alone(assistant):
    asked = [ROWS[4]["instruction"], ROWS[6]["instruction"]]
    both = [assistant.respond(text, "") for text in asked]
    last = ["", ""]
    for texts in zip_longest(*both):
        last = [text if text is not None else before for text, before in zip(texts, last)]
    assert last == [ROWS[4]["output"], ROWS[6]["output"]]


@pytest.mark.parametrize("beams", [1, 2])
def test_stop_texts_end_an_answer_and_are_not_part_of_it(beams, assistant):
    prompt = assistant.prompt_ids({"instruction": "我睡不着怎么办？"})

    def answer(*stop: str) -> dict:
        sampling = Sampling(max_new_tokens=60, stop=stop, num_beams=beams)
        return generation.answer_batch(assistant.model, assistant.tokenizer, [prompt], sampling)[0]

    whole = answer()
    assert whole["finish_reason"] == "stop" and len(whole["output"]) > 2
    for end in range(len(whole["output"])):
        found = answer("不会出现", whole["output"][end:], whole["output"][end : end + 2])
        assert found["output"] == whole["output"][:end] and found["finish_reason"] == "stop"
        assert found["tokens"] <= whole["tokens"]
    assert answer("不会出现")["output"] == whole["output"]


def test_what_may_become_a_stop_text_waits(assistant):
    stop = ("放下电脑", "慢慢呼吸")
    texts = list(assistant.respond("我睡不着怎么办？", "", stop=stop))
    assert texts[-1] == "\n先放下手机，\n"
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert not any(text.endswith(("放", "放下", "慢", "慢慢")) for text in texts)


def test_an_answer_ends_where_the_context_does(assistant):
    prompt = assistant.prompt_ids({"instruction": "我睡不着怎么办？"})
    sampling = Sampling(max_new_tokens=60)
    (whole,) = generation.answer_batch(assistant.model, assistant.tokenizer, [prompt], sampling)
    cut, short = generation.answer_batch(
        assistant.model, assistant.tokenizer, [prompt, prompt[:3]], sampling, len(prompt) + 4
    )
    assert (cut["finish_reason"], cut["tokens"]) == ("length", 4)
    assert whole["output"].startswith(cut["output"]) and "\ufffd" not in cut["output"]
    assert short["tokens"] > 4 or short["finish_reason"] == "stop"
    assert whole["seconds"] >= 0


def test_a_character_that_the_answer_ends_within_is_left_out(assistant):
    tokenizer = assistant.tokenizer
    ids = tokenizer("好😀", add_special_tokens=False).input_ids
    for last in (tokenizer.eos_token_id, tokenizer("#", add_special_tokens=False).input_ids[-1]):
        answer = generation.Answer(tokenizer, ("#",), 99)
        for token in [*ids[:-1], last]:
            answer.add(token)
        assert (answer.text, answer.finish_reason) == ("好", "stop")


def test_an_answer_cut_by_max_new_tokens_says_so(assistant):
    prompt = assistant.prompt_ids({"instruction": "我睡不着怎么办？"})
    sampling = Sampling(max_new_tokens=2)
    answer = generation.answer_batch(assistant.model, assistant.tokenizer, [prompt], sampling)[0]
    assert (answer["finish_reason"], answer["tokens"]) == ("length", 2)


def test_history_is_shown_and_the_reference_never(assistant):
    row = {"instruction": "问", "history": [["前问", "前答"]], "reference": "SECRET"}
    text = assistant.tokenizer.decode(assistant.prompt_ids(row))
    assert "前问" in text and "前答" in text and "SECRET" not in text


def test_a_prompt_longer_than_the_context_is_named(assistant, stage, tmp_path):
    path = write_rows(tmp_path / "p.json", ["短", "长" * 600])
    flags = {"base_model": stage["base_model"], "lora_weights": stage["output_dir"]}
    with pytest.raises(DataFault, match=r"p.json: longer .* 512 tokens: prompt 2 \(\d+ tokens\)"):
        generate.main(is_ui=False, test_input_path=path, output_path=str(tmp_path / "t.json"), **flags)
    with pytest.raises(DataFault, match="the model's context 512"):
        assistant.respond("长" * 600, "")


def test_an_error_in_the_generating_thread_reaches_the_reader():
    def work(callback):
        callback(1)
        raise ValueError("inside")

    with Iteratorize(work) as states, pytest.raises(ValueError, match="inside"):
        list(states)


def test_a_reader_who_leaves_stops_the_work():
    produced = []

    def work(callback):
        for number in range(10**6):
            produced.append(number)
            callback(number)

    with Iteratorize(work) as states:
        for number in states:
            if number == 3:
                break
    assert len(produced) < 10**6
