"""Decoding: the tokens of transformers' own generate, whatever the company; what is drawn follows seed and prompt."""

import pytest
import torch
from tiny_models import KNOWN, bpe_tokenizer
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

from utils import decoding, packing
from utils.decoding import Decoder, GrowingLayer, Sampling

EOS, PAD = 2, 0
GREEDY = Sampling()


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=EOS,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def bloom() -> BloomForCausalLM:
    config = BloomConfig(
        vocab_size=400, hidden_size=32, n_layer=2, n_head=4, eos_token_id=EOS, tie_word_embeddings=False,
        initializer_range=0.3,
    )  # fmt: skip
    return BloomForCausalLM(config)


@pytest.fixture(scope="module", params=[llama, bloom], ids=["llama", "bloom"])
def model(request):
    """Random, with wide embeddings: its tokens do not repeat at once."""
    torch.manual_seed(0)
    model = request.param().eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(30)
    return model


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = bpe_tokenizer()
    rows = sorted((row["instruction"] for row in KNOWN), key=len, reverse=True)
    return [tokenizer(text)["input_ids"] for text in rows[:9]]


def tokens(model, prompts, sampling=GREEDY, count: int = 24, leave=None) -> list[list[int]]:
    """count tokens of each prompt; leave: {row: after how many tokens it leaves}."""
    decoder = Decoder(model, prompts, sampling, PAD)
    found: list[list[int]] = [[] for _ in prompts]
    for _ in range(count):
        for row, token in zip(decoder.rows, decoder.step()):
            found[row].append(token)
        decoder.keep([row for row in decoder.rows if len(found[row]) < (leave or {}).get(row, count)])
    return found


def reference(model, prompt: list[int], count: int = 24) -> list[int]:
    ids = torch.tensor([prompt])
    flags = {"do_sample": False, "max_new_tokens": count, "eos_token_id": None, "pad_token_id": PAD}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **flags)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("group", [1, 40, 10**6], ids=["prompt by prompt", "in groups", "all at once"])
def test_each_row_of_a_batch_has_the_tokens_that_transformers_gives_it_alone(group, model, prompts, monkeypatch):
    monkeypatch.setattr(decoding, "GROUP", group)
    monkeypatch.setattr(decoding, "BLOCK", 5)  # the buffers grow several times
    expected = [reference(model, prompt) for prompt in prompts]
    assert tokens(model, prompts) == expected
    assert len({tuple(row) for row in expected}) > 5


def test_rows_that_leave_change_nothing_for_those_that_stay(model, prompts):
    leave = {0: 3, 4: 3, 5: 3, 8: 7, 1: 11}
    found = tokens(model, prompts, leave=leave)
    alone = tokens(model, prompts)
    assert found == [row[: leave.get(number, 24)] for number, row in enumerate(alone)]


def test_guesses_change_no_token_and_save_steps(model, prompts, monkeypatch):
    read, whole = [], []
    forward = Decoder._forward

    def noted(self, ids, mask, *more):
        read.append(ids.shape[1])
        whole.append(mask.shape[1])
        return forward(self, ids, mask, *more)

    monkeypatch.setattr(Decoder, "_forward", noted)
    for prompt in [*prompts, prompts[0] * 3, [1] + [5, 6, 7, 8] * 6]:
        whole.clear()
        decoder = Decoder(model, [prompt], GREEDY, PAD, guess=len(prompt) + 60)
        assert [decoder.step()[0] for _ in range(60)] == reference(model, prompt, 60)
        assert max(whole) < len(prompt) + 60, "no position behind the last token's"
    assert len(read) < 11 * 60 and max(read[1:]) > 5
    assert decoding._followed([1, 2, 3, 9, 1, 2, 3]) == [9, 1, 2, 3]
    assert decoding._followed([4, 5, 8, 4, 5, 6, 4, 5]) == [6, 4, 5] and decoding._followed([1, 2, 3]) == []


def test_what_is_drawn_depends_on_seed_and_prompt_and_not_on_the_company(model, prompts):
    sampling = Sampling(temperature=1.3, top_p=0.95, top_k=50, seed=7)
    torch.manual_seed(1)
    together = tokens(model, prompts, sampling)
    torch.manual_seed(2)
    assert tokens(model, prompts[::-1], sampling)[::-1] == together
    assert tokens(model, prompts[3:4], sampling) == together[3:4]
    assert tokens(model, [prompts[3], prompts[3]], sampling) == [together[3]] * 2
    other = tokens(model, prompts, Sampling(temperature=1.3, top_p=0.95, top_k=50, seed=8))
    assert all(one != two for one, two in zip(together, other))


@pytest.mark.parametrize("sampling", [Sampling(temperature=5, top_k=1), Sampling(temperature=5, top_p=1e-6)])
def test_one_candidate_is_the_greedy_answer(sampling, model, prompts):
    assert tokens(model, prompts[:3], sampling) == tokens(model, prompts[:3])


def test_draws_follow_the_probabilities():
    logits = torch.log(torch.tensor([[0.5, 0.0, 0.3, 0.2]]))
    choose = decoding._drawing([[1]], Sampling(temperature=1.0, top_p=1.0, top_k=4))
    drawn = torch.cat([choose(logits, [0]) for _ in range(4000)]).bincount(minlength=4) / 4000
    assert drawn[1] == 0
    torch.testing.assert_close(drawn, torch.tensor([0.5, 0, 0.3, 0.2]), atol=0.03, rtol=0)


def test_a_draw_never_falls_behind_the_last_probability(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([1 - 2**-24]))
    choose = decoding._drawing([[1]], Sampling(temperature=1.0, top_p=1.0, top_k=50))
    logits = torch.full((1, 50), -torch.inf)
    logits[0, :7] = torch.rand_like(logits[0, :7])
    assert choose(logits, [0]).item() < 7


def test_a_growing_layer_holds_what_it_was_given():
    layer = GrowingLayer()
    parts = [torch.randn(3, 2, length, 4) for length in (70, 1, 1, 90)]
    for part in parts:
        keys, values = layer.update(part, -part)
    whole = torch.cat(parts, 2)
    assert torch.equal(keys, whole) and torch.equal(values, -whole) and layer.get_seq_length() == 162
    layer.batch_select_indices(torch.tensor([2, 0]))
    keys, _ = layer.update(parts[1][:2], parts[1][:2])
    assert torch.equal(keys, torch.cat([whole[[2, 0]], parts[1][:2]], 2))


def test_packed_weights_give_the_same_products_and_leave_float32_alone():
    torch.manual_seed(0)
    model = llama().eval()
    before = dict(model.named_modules())
    assert packing.pack(model) is model and dict(model.named_modules()) == before
    model = model.to(torch.bfloat16)
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU does not multiply bfloat16")
    ids = torch.arange(3, 40).view(1, -1)
    with torch.inference_mode():
        plain = model(ids).logits
        packed = packing.pack(model)(ids).logits
    assert not any(type(layer) is torch.nn.Linear for layer in model.modules())
    torch.testing.assert_close(packed, plain, atol=2e-2, rtol=2e-2)
