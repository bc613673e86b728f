"""Prompts decoded together, one token each a step, for whoever pulls: who stops pulling stops the model.

What makes it quick: prompts are read in groups of like length and of few tokens (little padding, tensors that fit the
caches); keys and values grow inside buffers, they are not copied every step; answers that ended leave the batch.
A row's text does not depend on its neighbours (up to rounding: in float32 it is the same), drawn ones included.
"""

import hashlib
import inspect
import struct
from dataclasses import dataclass

import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import Cache, DynamicLayer

BLOCK = 64  # columns that a buffer of keys or values has to spare
GROUP = 2048  # tokens, padding included, that are read at once
GUESS = 10  # tokens that are guessed at once, where one stream may guess
TAIL = (3, 2)  # last tokens that must have stood together before
DEAD = 1 / 8  # share of a batch that may have ended before the rest is copied together


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy (or beam search); above 0 it draws with top_p and top_k.

    stop: texts that end an answer, and are not part of it.
    """

    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 0.75
    top_k: int = 40
    max_new_tokens: int = 512
    seed: int = 42
    stop: tuple[str, ...] = ()


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, (rows, heads, length, channels): the front of buffers with columns to spare.

    transformers' own DynamicLayer copies all of them for every token.
    """

    def update(self, key_states, value_states, *args, **kwargs):
        """Append columns; returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = None
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._buffers = [
                _wider(held, new, start, end + BLOCK)
                for held, new in ((self.keys, key_states), (self.values, value_states))
            ]
        for buffer, new in zip(self._buffers, (key_states, value_states)):
            buffer[:, :, start:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        super().batch_select_indices(indices)
        self._buffers = None


def _wider(held: torch.Tensor, new: torch.Tensor, start: int, length: int) -> torch.Tensor:
    buffer = new.new_empty(*new.shape[:-2], length, new.shape[-1])
    if start:
        buffer[:, :, :start] = held
    return buffer


class Decoder:
    """Prompts (id lists) being answered.

    rows: indices of the prompts still going; step() gives the next token of each; keep() drops the others.
    guess: for one greedy prompt, the tokens that it and its answer may have; try what followed the last tokens when
    they stood together before: the model reads several tokens for about the price of one, and only what it would have
    said itself is kept (up to rounding: in float32 the same text). 0: no guesses.
    """

    def __init__(self, model, prompts: list[list[int]], sampling: Sampling, pad_id: int, guess: int = 0):
        self.model, self._prompts, self._pad_id = model, prompts, pad_id
        self.rows = list(range(len(prompts)))
        self._places = list(self.rows)  # of the tensors: some of them may have ended
        self._choose = _drawing(prompts, sampling) if sampling.temperature > 0 else _highest
        self._cache: Cache | None = None
        self._said = list(prompts[0]) if guess and len(prompts) == 1 and not sampling.temperature else None
        self._most = guess
        self._ahead: list[int] = []
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter is around it
        self._has_positions = "position_ids" in inspect.signature(base.forward).parameters

    @torch.inference_mode()
    def step(self) -> list[int]:
        """One token for each of `rows`, in their order."""
        if self._said is not None and self._cache is not None:
            return [self._next()]
        logits = self._read() if self._cache is None else self._forward(self._last, self._mask, self._cache)[:, -1]
        self._last = self._choose(logits.float(), self._places)[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], 1)
        tokens = dict(zip(self._places, self._last.flatten().tolist()))
        if self._said is not None:
            self._said.append(tokens[0])
        return [tokens[row] for row in self.rows]

    def _next(self) -> int:
        """The next token of the only row: one that was read ahead, or the first of those that the model agrees with."""
        if not self._ahead:
            guessed = _followed(self._said)[: max(0, self._most - len(self._said) - 1)]  # one more is found behind it
            ids = torch.tensor([[self._said[-1], *guessed]], device=self._mask.device)
            mask = self._mask.new_ones(1, len(self._said) + len(guessed))
            found = self._forward(ids, mask, self._cache, len(guessed) + 1)[0].float().argmax(-1).tolist()
            right = next((n for n, (one, two) in enumerate(zip(guessed, found)) if one != two), len(guessed))
            self._cache.crop(right - len(guessed))
            self._ahead = found[: right + 1]
        self._said.append(self._ahead.pop(0))
        return self._said[-1]

    @torch.inference_mode()
    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only. Those that end leave the tensors when they are enough to be worth a copy."""
        self.rows = rows
        if rows and len(rows) <= len(self._places) * (1 - DEAD):
            kept = torch.tensor([self._places.index(row) for row in rows], device=self._mask.device)
            self._cache.batch_select_indices(kept)
            self._last, self._mask, self._places = self._last[kept], self._mask[kept], list(rows)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Cache, count: int = 1) -> torch.Tensor:
        """Logits (rows, count, vocabulary) behind the last of ids (rows, new tokens); mask: (rows, all tokens)."""
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        more = {"position_ids": positions} if self._has_positions else {}
        output = self.model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=count, **more
        )
        return output.logits

    def _read(self) -> torch.Tensor:
        """Read the prompts, group by group, into one left-padded cache; logits behind each."""
        groups, logits = [], []
        longest = max(map(len, self._prompts))
        self._mask = _mask(self._prompts, longest).to(self.model.device)
        for group in _groups(self._prompts):
            length = max(map(len, group))
            ids = torch.tensor([[self._pad_id] * (length - len(prompt)) + prompt for prompt in group])
            cache = Cache(layer_class_to_replicate=GrowingLayer)
            mask = _mask(group, length).to(self.model.device)
            logits.append(self._forward(ids.to(self.model.device), mask, cache)[:, -1])
            groups.append(cache)
        self._cache = groups[0] if len(groups) == 1 else _joined(groups, longest)
        return torch.cat(logits)


def _followed(said: list[int]) -> list[int]:
    """What followed the last tokens where they stood together before, the latest time; [] where they never did."""
    for length in TAIL:
        tail = said[-length:]
        for end in range(len(said) - 1, length - 1, -1):
            if said[end - length : end] == tail:
                return said[end : end + GUESS]
    return []


def _mask(prompts: list[list[int]], length: int) -> torch.Tensor:
    return torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])


def _groups(prompts: list[list[int]]) -> list[list[list[int]]]:
    """The prompts in their order, cut into runs of at most GROUP tokens with the padding each needs."""
    groups: list[list[list[int]]] = []
    for prompt in prompts:
        group = groups[-1] if groups else []
        if group and max(map(len, [*group, prompt])) * (len(group) + 1) <= GROUP:
            group.append(prompt)
        else:
            groups.append([prompt])
    return groups


def _joined(groups: list[Cache], length: int) -> Cache:
    """One cache of all rows, the shorter ones padded on the left; the parts are taken apart layer by layer."""
    whole = Cache(layer_class_to_replicate=GrowingLayer)
    rows = sum(len(group.layers[0].keys) for group in groups)
    for index, first in enumerate(groups[0].layers):
        joined = []
        for what in ("keys", "values"):
            part = getattr(first, what)
            buffer = part.new_zeros(rows, part.shape[1], length, part.shape[3])  # hidden by the mask, but never NaN
            row = 0
            for group in groups:
                part = getattr(group.layers[index], what)
                buffer[row : row + len(part), :, length - part.shape[2] :] = part
                row += len(part)
            joined.append(buffer)
        for group in groups:
            group.layers[index].reset()
        whole.update(*joined, index)
    return whole


def _highest(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return logits.argmax(-1)


def _drawing(prompts: list[list[int]], sampling: Sampling):
    """A chooser that draws each row's token with a generator of its own, seeded by the seed and the prompt: threads do
    not disturb each other, and a prompt's answer does not depend on where it stands."""
    generators = [torch.Generator().manual_seed(_seed(prompt, sampling.seed)) for prompt in prompts]
    warpers = [
        TemperatureLogitsWarper(float(sampling.temperature)),
        TopKLogitsWarper(sampling.top_k),
        TopPLogitsWarper(float(sampling.top_p)),
    ]

    def choose(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
        for warp in warpers:
            logits = warp(None, logits)
        heaped = logits.softmax(-1).cumsum(-1)
        drawn = torch.stack([torch.rand(1, generator=generators[row]) for row in rows]).to(logits.device)
        whole = heaped[:, -1:]
        # never as much as the whole: behind it stand tokens of probability 0
        return torch.searchsorted(heaped, torch.minimum(drawn * whole, whole.nextafter(-whole)), right=True)[:, 0]

    return choose


def _seed(prompt: list[int], seed: int) -> int:
    text = struct.pack(f"<{len(prompt) + 1}q", seed, *prompt)
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "little")
