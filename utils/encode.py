"""Rows as token ids and labels: prompt masked, EOS supervised, truncated at the cutoff.

Prompt and answer are encoded apart and concatenated, so that the ids in front of an answer are in training
exactly those that the model is given at inference, whatever the tokenizer would merge across the seam.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from utils.prompter import Prompter

IGNORED = -100
_CHARACTERS = 16  # of a text a token of the cutoff is tried with: a row of 40 MB is not tokenized for its first 256
_MARGIN = 64  # tokens behind the cutoff, so that no token in front of it is another because the text was cut


def prompt_ids(tokenizer: Any, prompter: Prompter, row: dict) -> list[int]:
    """Ids of everything in front of the row's (last) answer, history laid turn by turn."""
    (turns,) = _encode_turns(tokenizer, prompter, [{**row, "output": ""}])
    return [token for prompt, answer in turns for token in prompt + answer]


def encode_rows(
    tokenizer: Any,
    prompter: Prompter,
    rows: Iterable[dict],
    cutoff_len: int,
    train_on_inputs: bool,
    last_turn_only: bool = False,
) -> list[dict]:
    """Each row as {"input_ids", "labels", "whole", "answers", "ended"}.

    input_ids, labels: int lists of equal length, at most cutoff_len; whole: its tokens before the cutoff (where it is
    very long, at least so many); answers: those it learns; ended: those of them whose EOS the cutoff leaves. Every
    assistant turn and its EOS is supervised, or the last alone (last_turn_only); prompts too where train_on_inputs.
    Unsupervised labels are -100.
    """
    encoded = _encode_turns(tokenizer, prompter, rows, cutoff_len + _MARGIN)
    return [_join(turns, cutoff_len, train_on_inputs, last_turn_only) for turns in encoded]


def _join(turns: list[tuple[list[int], list[int]]], cutoff_len: int, train_on_inputs: bool, last_only: bool) -> dict:
    ids, labels, ends = [], [], []
    for number, (prompt, answer) in enumerate(turns, 1):
        learned = bool(answer) and (not last_only or number == len(turns))
        ids += prompt + answer
        labels += prompt if train_on_inputs else [IGNORED] * len(prompt)
        labels += answer if train_on_inputs or learned else [IGNORED] * len(answer)
        ends += [len(ids)] if learned else []
    return {
        "input_ids": ids[:cutoff_len],
        "labels": labels[:cutoff_len],
        "whole": len(ids),
        "answers": len(ends),
        "ended": sum(end <= cutoff_len for end in ends),
    }


def _encode_turns(
    tokenizer: Any, prompter: Prompter, rows: Iterable[dict], enough: int | None = None
) -> list[list[tuple[list[int], list[int]]]]:
    """For each row its turns as (ids of the prompt, ids of the answer and its EOS). An empty answer is left open.

    The texts of all rows are tokenized in two calls. enough: see _tokenize.
    """
    laid = [[text for turn in prompter.turns(row) for text in turn] for row in rows]
    openings = iter(_openings(tokenizer, [texts[0] for texts in laid], enough))
    behind = iter(_continuations(tokenizer, [text for texts in laid for text in texts[1:]], enough))
    encoded = []
    for texts in laid:
        ids = [next(openings), *islice(behind, len(texts) - 1)]
        turns = zip(ids[::2], ids[1::2], texts[1::2], strict=True)
        encoded.append([(prompt, [*answer, tokenizer.eos_token_id] if text else []) for prompt, answer, text in turns])
    return encoded


def _openings(tokenizer: Any, texts: list[str], enough: int | None) -> list[list[int]]:
    """Ids of each text's start: with the BOS where this tokenizer puts one, never with its EOS."""
    encoded = _tokenize(tokenizer, texts, enough, add_special_tokens=True)
    return [ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids for ids in encoded]


def _continuations(tokenizer: Any, texts: list[str], enough: int | None) -> list[list[int]]:
    """Ids of texts that stand behind other text.

    SentencePiece puts a blank before the first word of whatever it is given; behind a newline (a piece of its own,
    taken away again) it does not. Where the newline merges with the text, the tokenizer is a byte-level one, which
    adds no blank.
    """
    mark = tokenizer("\n", add_special_tokens=False)["input_ids"]
    encoded = _tokenize(tokenizer, ["\n" + text for text in texts], enough, add_special_tokens=False)
    merged = [index for index, ids in enumerate(encoded) if ids[: len(mark)] != mark]
    alone = iter(_tokenize(tokenizer, [texts[index] for index in merged], enough, add_special_tokens=False))
    return [ids[len(mark) :] if ids[: len(mark)] == mark else next(alone) for ids in encoded]


def _tokenize(tokenizer: Any, texts: list[str], enough: int | None, add_special_tokens: bool) -> list[list[int]]:
    """Ids of each text; of a long one only the beginning, as much of it as gives `enough` tokens or more."""
    if not texts:
        return []

    def ids_of(cut: list[str]) -> list[list[int]]:
        return tokenizer(cut, add_special_tokens=add_special_tokens, return_attention_mask=False)["input_ids"]

    if enough is None:
        return ids_of(texts)
    limit = _CHARACTERS * enough
    encoded = ids_of([text[:limit] for text in texts])
    while short := [n for n, text in enumerate(texts) if len(text) > limit and len(encoded[n]) < enough]:
        limit *= 4
        for index, ids in zip(short, ids_of([texts[index][:limit] for index in short])):
            encoded[index] = ids
    return encoded
