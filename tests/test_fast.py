"""The fast path of training equals the plain one: per row, per gradient, with dropout, over a whole run."""

import json

import pytest
import torch
from conftest import LINEAR, both_families
from safetensors.torch import load_file
from tiny_models import tiny_llama
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)  # fmt: skip

from utils import fast, models, training
from utils.batching import collate, collate_packed, parts_of, tokens_of
from utils.encode import IGNORED
from utils.errors import ModelFault

CPU = torch.device("cpu")
LENGTHS = [9, 31, 5, 17, 12, 40]


def rows(lengths: list[int], seed: int = 0) -> list[dict]:
    """Prompts of a third of the length; one row is learned from its first token on."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 390, (length,), generator=generator).tolist() for length in lengths]
    kept = [0 if index == 1 else len(row) // 3 for index, row in enumerate(ids)]
    return [{"input_ids": row, "labels": [IGNORED] * cut + row[cut:]} for row, cut in zip(ids, kept)]


def with_lora(folder, is_fast: bool, dtype: str = "float32", dropout: float = 0.0, targets=LINEAR):
    """The base with LoRA weights that do something, the same for every call; in training mode."""
    torch.manual_seed(1)
    model = models.add_lora(models.load_base(folder, False, False, dtype, CPU), 4, 8, dropout, targets, is_fast)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.05)
    return model.train()


def gradients(model, head, batches: list[dict]) -> torch.Tensor:
    """All LoRA gradients of one step of several micro batches, in one line."""
    model.zero_grad()
    tokens = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
    for batch in batches:
        (training.label_loss(model, batch, head)[0] / tokens).backward()
    return torch.cat([tensor.grad.flatten() for _, tensor in sorted(model.named_parameters()) if tensor.requires_grad])


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def micro(chosen: list[dict], size: int, packed: bool) -> list[dict]:
    chunks = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    return [collate_packed(chunk) if packed else collate(chunk, 0) for chunk in chunks]


def test_every_row_has_the_plain_loss(base):
    plain, quick = with_lora(base, False), with_lora(base, True)
    head = fast.prepare(quick, CPU)
    chosen = rows(LENGTHS)
    for batch in (chosen, *([row] for row in chosen)):
        expected, count = training.label_loss(plain, collate(batch, 0))
        loss, tokens = training.label_loss(quick, collate_packed(batch), head)
        assert tokens == count and loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("short", [0, 20, 512], ids="rows up to {} tokens by two products".format)
def test_attention_inside_rows_is_the_plain_one(monkeypatch, short):
    monkeypatch.setattr(fast, "SHORT", short)
    torch.manual_seed(0)
    states = [torch.randn(1, heads, sum(LENGTHS), 16, requires_grad=True) for heads in (6, 2, 2)]
    found, _ = fast.rows_attention(None, *states, None, LENGTHS, 0.25)
    expected = [
        nn.functional.scaled_dot_product_attention(*row, is_causal=True, scale=0.25, enable_gqa=True)
        for row in zip(*(tensor.split(LENGTHS, dim=2) for tensor in states))
    ]
    expected = torch.cat(expected, dim=2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(found)
    pairs = (torch.autograd.grad((output * weight).sum(), states, retain_graph=True) for output in (found, expected))
    for one, other in zip(*pairs):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 6])
def test_a_step_has_the_plain_gradients(base, size):
    plain, quick = with_lora(base, False), with_lora(base, True)
    head = fast.prepare(quick, CPU)
    expected = gradients(plain, None, micro(rows(LENGTHS), size, False))
    assert distance(gradients(quick, head, micro(rows(LENGTHS), size, True)), expected) < 1e-5


class Masks(nn.Module):
    """In the place of PEFT's dropout: the masks that the fast path drew, in the order of the layers."""

    def __init__(self, masks: list):
        super().__init__()
        self.masks = masks

    def forward(self, x):
        kept, factor = self.masks.pop(0)
        return x * kept.view(x.shape) * factor


def test_with_dropout_the_gradients_are_those_of_the_same_masks(base, monkeypatch):
    plain, quick = with_lora(base, False, dropout=0.3), with_lora(base, True, dropout=0.3)
    head = fast.prepare(quick, CPU)
    masks, draw = [], fast.dropout_mask
    monkeypatch.setattr(fast, "dropout_mask", lambda x, p: masks.append(draw(x, p)) or masks[-1])
    batch = rows([12, 12, 12])  # of one length: padded and packed tensors hold the same numbers in the same order
    found = gradients(quick, head, [collate_packed(batch)])
    assert len({mask.numpy().tobytes() for mask, _ in masks}) == len(masks) == 14  # a mask of its own for every layer
    for module in plain.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = Masks(masks)
    assert distance(found, gradients(plain, None, [collate(batch, 0)])) < 1e-5


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_rate_of_the_dropout(p):
    torch.manual_seed(3)
    kept, factor = fast.dropout_mask(torch.empty(1000, 4001), p)
    dropped, count = 1 - kept.double().mean().item(), kept.numel()
    assert abs(dropped - p) < 1 / 65536 + 5 * (p * (1 - p) / count) ** 0.5
    assert factor == pytest.approx(1 / (1 - p), rel=2e-4)
    columns = 1 - kept.double().mean(0)  # no place is dropped more often than another
    assert (columns - p).abs().max() < 6 * (p * (1 - p) / len(kept)) ** 0.5


def test_no_dropout_is_no_mask():
    assert fast.dropout_mask(torch.empty(3, 4), 0.0) == (None, 1.0)


def test_in_bfloat16_it_is_no_further_from_the_truth_than_the_plain_path(base):
    """The truth: float32 arithmetic on the same bfloat16 base."""
    truth = gradients(with_lora(base, False).to(torch.bfloat16).float(), None, micro(rows(LENGTHS), 3, False))
    plain, quick = with_lora(base, False, "bfloat16"), with_lora(base, True, "bfloat16")
    head = fast.prepare(quick, CPU)
    spread = max(distance(gradients(plain, None, micro(rows(LENGTHS), size, False)), truth) for size in (2, 3, 6))
    found = max(distance(gradients(quick, head, micro(rows(LENGTHS), size, True)), truth) for size in (2, 3, 6))
    assert found < 2 * spread < 0.2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_large_steps_small_gradients_are_no_worse_than_the_plain_ones(base, dtype):
    """Of A while B is small, as at the start: among 10,000 learned tokens they are below what float16 can hold."""

    def of_a(model, head, batch):
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                tensor.mul_(0.002 if "lora_B" in name else 1)
        (training.label_loss(model, batch, head)[0] / 10_000).backward()
        return torch.cat([tensor.grad.flatten() for name, tensor in model.named_parameters() if "lora_A" in name])

    padded, packed = collate(rows(LENGTHS), 0), collate_packed(rows(LENGTHS))
    truth = of_a(with_lora(base, False).to(getattr(torch, dtype)).float(), None, padded)
    plain, quick = with_lora(base, False, dtype), with_lora(base, True, dtype)
    found = distance(of_a(quick, fast.prepare(quick, CPU), packed), truth)
    assert found < 2 * distance(of_a(plain, None, padded), truth) + 0.01


def test_a_row_sees_no_other(base):
    quick = with_lora(base, True).eval()
    head = fast.prepare(quick, CPU)
    first, second, other = rows([20, 15, 20])
    alone = training.label_loss(quick, collate_packed([second]), head)[0]
    for before in (first, other):
        sums = [training.label_loss(quick, collate_packed(batch), head)[0] for batch in ([before, second], [before])]
        torch.testing.assert_close(sums[0] - sums[1], alone, rtol=1e-4, atol=0)


def test_packed_rows_are_counted_as_padded_ones():
    batch, padded = collate_packed(rows(LENGTHS)), collate(rows(LENGTHS), 0)
    assert tokens_of(batch) == tokens_of(padded) == sum(LENGTHS) == batch["input_ids"].numel()
    assert (batch["labels"][:, 1:] != IGNORED).sum() == (padded["labels"][:, 1:] != IGNORED).sum()
    assert batch["position_ids"][0, :11].tolist() == [*range(9), 0, 1]


@both_families
def test_a_whole_run_learns_what_the_plain_one_learns(quick, train, tmp_path):
    adapters = []
    for is_fast in (True, False):
        out = tmp_path / str(is_fast)
        train(**{**quick, "output_dir": str(out), "lora_dropout": 0.0, "fast": is_fast})
        adapters.append(load_file(out / "adapter_model.safetensors"))
        config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
        assert not [key for key in config if "custom" in key]
    assert adapters[0].keys() == adapters[1].keys()
    for name in adapters[0]:
        torch.testing.assert_close(adapters[0][name], adapters[1][name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_base_keeps_its_own_lora_layers_and_gets_the_rest(base, bits):
    def loaded(is_fast: bool):
        torch.manual_seed(1)
        model = models.prepare_for_training(models.load_base(base, bits == 8, bits == 4, "auto", CPU))
        return models.add_lora(model, 4, 8, 0.0, ("q_proj", "v_proj"), is_fast).train()

    plain, quick = loaded(False), loaded(True)
    assert not [layer for layer in quick.modules() if isinstance(layer, fast.FusedLora)]
    head = fast.prepare(quick, CPU)
    expected, found = (
        gradients(model, top, micro(rows(LENGTHS), 3, packed))
        for model, top, packed in ((plain, None, False), (quick, head, True))
    )
    assert distance(found, expected) < 0.05  # 8 bits round activations by the largest of their row


@pytest.fixture
def bloom(tmp_path):
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    return tmp_path / "bloom"


def test_bloom_stays_padded_and_gets_the_loss_in_parts(bloom):
    targets = ("query_key_value",)
    plain, quick = with_lora(bloom, False, targets=targets), with_lora(bloom, True, targets=targets)
    head = fast.prepare(quick, CPU)
    assert not fast.can_pack(quick) and fast.can_pack(with_lora(tiny_llama(bloom / "llama"), True))
    expected = gradients(plain, None, micro(rows(LENGTHS), 3, False))
    assert distance(gradients(quick, head, micro(rows(LENGTHS), 3, False)), expected) < 1e-5


def test_every_token_of_a_bloom_has_its_plain_loss_and_no_batch_has_all_logits(tmp_path, monkeypatch):
    """With BLOOM's own vocabulary, in float32. Plain: the model's own logits of every token."""
    rows_, learned = 250_880, []
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=rows_, hidden_size=16, n_layer=2, n_head=4, initializer_range=0.3)
    BloomForCausalLM(config).save_pretrained(tmp_path)
    model = with_lora(tmp_path, True, targets=("query_key_value", "dense"))
    batch = collate(rows(LENGTHS[:4]), 3)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        plain = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none")
    del logits
    head = fast.prepare(model, CPU)
    product = nn.functional.linear

    def linear(given, weight, bias=None):
        learned.append(len(given) if len(weight) == rows_ else 0)
        return product(given, weight, bias)

    monkeypatch.setattr(fast, "CHUNK", 8)
    monkeypatch.setattr(fast.functional, "linear", linear)
    whole, count = training.label_loss(model, batch, head)
    assert (sum(learned), max(learned)) == (count, 8) and count > 40
    assert whole.item() == pytest.approx(plain.sum().item(), rel=1e-5)
    for place in batch["labels"][:, 1:].flatten().ne(IGNORED).nonzero().flatten().tolist():
        labels = torch.full_like(batch["labels"], IGNORED)
        row, column = divmod(place, labels.shape[1] - 1)
        labels[row, column + 1] = batch["labels"][row, column + 1]
        with torch.no_grad():
            loss, one = training.label_loss(model, {**batch, "labels": labels}, head)
        assert one == 1 and loss.item() == pytest.approx(plain[place].item(), rel=1e-5)


def test_a_model_that_caps_its_logits_is_sent_to_the_plain_path(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma2Config(vocab_size=400, num_key_value_heads=2, head_dim=8, final_logit_softcapping=30.0, **sizes)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelFault, match="gemma2 changes its logits behind the head: add --fast False"):
        fast.prepare(with_lora(tmp_path, True), CPU)


def test_the_loss_in_parts_is_the_whole_one(monkeypatch):
    monkeypatch.setattr(fast, "CHUNK", 7)
    torch.manual_seed(0)
    head, hidden = nn.Linear(16, 300), torch.randn(40, 16, requires_grad=True)
    head.requires_grad_(False)
    targets = torch.randint(0, 300, (40,))
    loss = fast.summed_loss(hidden, head, targets)
    (found,) = torch.autograd.grad(loss * 0.25, hidden)
    plain = nn.functional.cross_entropy(head(hidden), targets, reduction="sum")
    (expected,) = torch.autograd.grad(plain * 0.25, hidden)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_parts_of_a_batch_are_its_rows_in_order():
    batch = collate_packed(rows(LENGTHS))
    parts = list(parts_of(batch, 40))
    assert [part["row_lengths"] for part in parts] == [[9, 31], [5, 17, 12], [40]]
    for name in ("input_ids", "position_ids", "labels"):
        assert torch.equal(torch.cat([part[name] for part in parts], dim=1), batch[name])
    assert [part["row_lengths"] for part in parts_of(batch, 1)] == [[length] for length in LENGTHS]
    padded = collate(rows(LENGTHS), 0)
    parts = list(parts_of(padded, 50))
    assert [tuple(part["labels"].shape) for part in parts] == [(1, 9), (1, 31), (2, 17), (1, 12), (1, 40)]
    for name, whole in padded.items():
        rest = [whole[row, :length] for row, length in enumerate(LENGTHS)]
        found = [row[:length] for part in parts for row, length in zip(part[name], part["attention_mask"].sum(1))]
        assert all(torch.equal(one, other) for one, other in zip(found, rest, strict=True))
    (whole,) = parts_of(padded, 6 * 40)
    assert all(torch.equal(whole[name], tensor) for name, tensor in padded.items())


@both_families
def test_a_run_in_parts_is_the_run_in_one(quick, train, tmp_path, monkeypatch):
    adapters, rows_at_once, loss = [], [], training.label_loss

    def counted(model, inputs, head):
        rows_at_once.append(len(inputs.get("row_lengths", inputs["labels"])))
        return loss(model, inputs, head)

    monkeypatch.setattr(training, "label_loss", counted)
    for most in (10_000, 1):
        rows_at_once.clear()
        monkeypatch.setattr(fast, "part_tokens", lambda device, most=most: most)
        out = tmp_path / str(most)
        train(**{**quick, "output_dir": str(out), "lora_dropout": 0.0, "micro_batch_size": 2})
        adapters.append(load_file(out / "adapter_model.safetensors"))
    for name in adapters[0]:
        torch.testing.assert_close(adapters[0][name], adapters[1][name], rtol=1e-2, atol=1e-4)
    assert set(rows_at_once) == {1}  # those of the evaluations too


def test_a_model_that_reads_its_heads_weight_still_finds_it():
    config = MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=4)
    model = models.add_lora(MambaForCausalLM(config), 2, 4, 0.0, ("in_proj",), is_fast=True)
    fast.prepare(model, CPU)
    assert model(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2, 8)
