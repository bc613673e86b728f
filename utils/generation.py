"""Answers from a model: a batch, or one answer streamed as it grows.

Only new tokens are decoded: the answer is never searched for in the whole text.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from utils import encode, packing
from utils.callbacks import Iteratorize, Stream
from utils.decoding import Decoder, Sampling
from utils.errors import ArgumentFault, DataFault
from utils.prompter import Prompter

HALF = "\ufffd"  # what the bytes of a character that is not whole yet decode to


class Answer:
    """One answer while it grows, from the tokens of it that are there.

    finish_reason: "" while it grows, then "stop" (end of sequence, or a stop text) or "length" (max_new_tokens, or the
    model's context).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], most: int):
        self._tokenizer, self._stop, self._most = tokenizer, stop, most
        self.ids: list[int] = []
        self.tokens = 0
        self.finish_reason = ""

    def add(self, token: int) -> None:
        """Take one more token, the end of sequence included."""
        self.tokens += 1
        if token == self._tokenizer.eos_token_id:
            self.finish_reason = "stop"
            return
        self.ids.append(token)
        if self._stop and any(stop in self._decoded() for stop in self._stop):
            self.finish_reason = "stop"
        elif self.tokens == self._most:
            self.finish_reason = "length"

    @property
    def text(self) -> str:
        """What can be shown: no half character; no stop text, nor what may become one."""
        text = self._decoded()
        end = min((text.index(stop) for stop in self._stop if stop in text), default=None)
        text = text[:end].rstrip(HALF)
        return text if self.finish_reason else text[: len(text) - _beginning(text, self._stop)]

    def _decoded(self) -> str:
        return self._tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _beginning(text: str, stops: tuple[str, ...]) -> int:
    """Characters at the end of text that a stop text may begin with."""
    lengths = (n for stop in stops for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
    return max(lengths, default=0)


def answer_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    sampling: Sampling,
    context: int = 1 << 30,
) -> list[dict]:
    """Answer prompts (id lists) together. Each answer: {"output", "finish_reason", "tokens", "seconds"}.

    Seconds are counted from the start of the batch. An answer is cut where the context (tokens, prompt included) ends.
    """
    if sampling.num_beams > 1:
        return _searches(model, tokenizer, prompts, sampling, context)
    begin = time.monotonic()
    decoder = Decoder(model, prompts, sampling, tokenizer.pad_token_id)
    limits = [min(sampling.max_new_tokens, context - len(prompt)) for prompt in prompts]
    answers = [Answer(tokenizer, sampling.stop, limit) for limit in limits]
    seconds = {}
    while decoder.rows:
        for row, token in zip(decoder.rows, decoder.step()):
            answers[row].add(token)
            if answers[row].finish_reason:
                seconds[row] = time.monotonic() - begin
        decoder.keep([row for row in decoder.rows if row not in seconds])
    return [_result(answer, seconds[row]) for row, answer in enumerate(answers)]


def _result(answer: Answer, seconds: float) -> dict:
    return {
        "output": answer.text,
        "finish_reason": answer.finish_reason,
        "tokens": answer.tokens,
        "seconds": round(seconds, 3),
    }


def _searches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    sampling: Sampling,
    context: int,
) -> list[dict]:
    """Beam searches: together, but a prompt near the context's end alone, since a search has one length for all."""
    rows = range(len(prompts))
    alone = [[row] for row in rows if context - len(prompts[row]) < sampling.max_new_tokens]
    together = [row for row in rows if [row] not in alone]
    found: dict[int, dict] = {}
    for group in filter(None, [*alone, together]):
        searched = _search(model, tokenizer, [prompts[row] for row in group], sampling, context)
        found |= zip(group, searched, strict=True)
    return [found[row] for row in rows]


@torch.inference_mode()
def _search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    sampling: Sampling,
    context: int,
    criteria: Sequence = (),
) -> list[dict]:
    """Beam search, by transformers. It knows an answer only at the end: stop texts cut what it has found."""
    begin = time.monotonic()
    longest = max(map(len, prompts))
    most = min(sampling.max_new_tokens, context - longest)
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(
        do_sample=False,
        num_beams=sampling.num_beams,
        max_new_tokens=most,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    sequences = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=config,
        stopping_criteria=list(criteria),
    )
    answers = []
    for sequence in sequences[:, longest:].tolist():
        answer = Answer(tokenizer, sampling.stop, most)
        while sequence and not answer.finish_reason:
            answer.add(sequence.pop(0))
        answer.finish_reason = answer.finish_reason or "stop"
        answers.append(answer)
    return [_result(answer, time.monotonic() - begin) for answer in answers]


class Assistant:
    """A loaded model with its tokenizer, template and default sampling: what the page and the batch talk to.

    context: tokens the model was built for (2048 where its configuration does not say). adapter: which of several on
    the model; lock: who shares the model shares it, and holds it for a token at a time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompter: Prompter,
        sampling: Sampling,
        adapter: str = "",
        lock: "threading.Lock | None" = None,
    ):
        self.model, self.tokenizer, self.prompter, self.sampling = model.eval(), tokenizer, prompter, sampling
        self.context = context_of(model.config)
        self._adapter, self._lock = adapter, lock or threading.Lock()

    def prompt_ids(self, row: dict) -> list[int]:
        """The row's prompt (instruction, input, history) as ids, laid out as in training."""
        return encode.prompt_ids(self.tokenizer, self.prompter, row)

    def answers(self, prompts: list[list[int]]) -> list[dict]:
        """See answer_batch."""
        with self._lock:
            self._activate()
            return answer_batch(self.model, self.tokenizer, prompts, self.sampling, self.context)

    def respond(
        self, instruction: str, input: str = "", history: Sequence[Sequence[str]] = (), **settings: Any
    ) -> Iterator[str]:
        """Stream the answer: its text so far after every token; with beams "" until the search has ended. One answer
        runs only while its next text is asked for.

        history: [user, assistant] pairs; settings: any of Sampling's fields, in place of the defaults. Raises DataFault
        for a prompt that leaves no room, ArgumentFault for beams that would draw.
        """
        prompt = self.prompt_ids({"instruction": instruction, "input": input, "history": list(history)})
        sampling = replace(self.sampling, **settings)
        if len(prompt) >= self.context:
            raise DataFault(
                f"提示有 {len(prompt)} 个 token，模型的上下文只有 {self.context}。"
                f"The prompt has {len(prompt)} tokens, the model's context {self.context}."
            )
        if sampling.num_beams > 1 and sampling.temperature > 0:
            raise ArgumentFault(
                "束宽大于 1 与温度大于 0 不能同时使用。Beams search, a temperature above 0 draws: choose one."
            )
        return self._stream(prompt, sampling)

    def _stream(self, prompt: list[int], sampling: Sampling) -> Iterator[str]:
        if sampling.num_beams > 1:
            yield from self._search(prompt, sampling)
            return
        most = min(sampling.max_new_tokens, self.context - len(prompt))
        decoder = Decoder(self.model, [prompt], sampling, self.tokenizer.pad_token_id, guess=len(prompt) + most)
        answer = Answer(self.tokenizer, sampling.stop, most)
        while not answer.finish_reason:
            with self._lock:
                self._activate()
                (token,) = decoder.step()
            answer.add(token)
            yield answer.text

    def _search(self, prompt: list[int], sampling: Sampling) -> Iterator[str]:
        """An empty text a step of a beam search, which has none before its end: a reader can leave at any step."""
        found = []

        def search(callback: Callable[[torch.Tensor], None]) -> None:
            def between_steps(state: torch.Tensor) -> None:
                callback(state)
                self._lock.release()
                time.sleep(0.001)  # a lock is not fair: who waits for it needs a moment to take it
                self._lock.acquire()
                self._activate()

            criteria = [Stream(between_steps)]
            with self._lock:
                self._activate()
                found.extend(_search(self.model, self.tokenizer, [prompt], sampling, self.context, criteria))

        with Iteratorize(search) as steps:
            for _ in steps:
                yield ""
        yield found[0]["output"]

    def _activate(self) -> None:
        if self._adapter and self.model.active_adapter != self._adapter:
            self.model.set_adapter(self._adapter, inference_mode=True)


def assistants(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tuned: Sequence[Any], sampling: Sampling
) -> dict[str, Assistant]:
    """One assistant for each of `tuned` (see utils.tuned) by its name; they share the model, a token at a time."""
    lock = threading.Lock()
    is_beside = hasattr(model, "get_base_model")  # otherwise it is part of the weights
    packing.pack(model)
    return {
        one.name: Assistant(model, tokenizer, one.prompter, sampling, one.key if is_beside else "", lock)
        for one in tuned
    }


def context_of(config: PreTrainedConfig) -> int:
    """Tokens a model of this configuration was built for; 2048 where it does not say."""
    return getattr(config, "max_position_embeddings", None) or 2048
