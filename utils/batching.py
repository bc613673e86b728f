"""Rows into batches: the order of an epoch, and the padded tensors of a micro batch."""

from collections.abc import Iterable, Iterator

import torch

from utils.encode import IGNORED

# A row that teaches nothing, for processes that would have none.
FILLER = {"input_ids": [0], "labels": [IGNORED], "length": 1, "whole": 1, "supervised": 0, "line": 0, "file": 0}


def collate(rows: list[dict], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Right-padded input_ids, attention_mask and labels, each int64 (rows, longest)."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([[*value, *[fill] * (longest - len(value))] for value in values])

    return {
        "input_ids": padded([row["input_ids"] for row in rows], pad_token_id),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
        "labels": padded([row["labels"] for row in rows], IGNORED),
    }


def collate_packed(rows: list[dict]) -> dict[str, torch.Tensor | list[int]]:
    """The rows behind one another: input_ids, position_ids (counted anew in each row) and labels, each int64
    (1, tokens), and row_lengths, a list. Nothing is to be learned across the seam of two rows."""

    def joined(values: Iterable[Iterable[int]]) -> torch.Tensor:
        return torch.tensor([[value for row in values for value in row]])

    lengths = [len(row["input_ids"]) for row in rows]
    return {
        "input_ids": joined([row["input_ids"] for row in rows]),
        "position_ids": joined([range(length) for length in lengths]),
        "labels": joined([[IGNORED, *row["labels"][1:]] for row in rows]),
        "row_lengths": lengths,
    }


def parts_of(batch: dict, most: int) -> Iterator[dict]:
    """A batch in parts of at most `most` tokens each, padding included, or of one row that is longer. A padded part is
    as long as its longest row."""
    is_packed = "row_lengths" in batch
    lengths = batch["row_lengths"] if is_packed else batch["attention_mask"].sum(1).tolist()
    start = row = 0
    while row < len(lengths):
        end = row + 1
        while end < len(lengths) and _size(lengths[row : end + 1], is_packed) <= most:
            end += 1
        stop = start + sum(lengths[row:end])
        if is_packed:
            tensors = {name: batch[name][:, start:stop] for name in ("input_ids", "position_ids", "labels")}
            yield {**tensors, "row_lengths": lengths[row:end]}
        else:
            yield {name: tensor[row:end, : max(lengths[row:end])] for name, tensor in batch.items()}
        start, row = stop, end


def _size(lengths: list[int], is_packed: bool) -> int:
    return sum(lengths) if is_packed else max(lengths) * len(lengths)


def tokens_of(batch: dict) -> int:
    """Tokens of a batch that are neither padding nor a filler."""
    learned = batch["labels"] != IGNORED
    if "attention_mask" in batch:
        return int(batch["attention_mask"][learned.any(1)].sum())
    lengths = batch["row_lengths"]
    return sum(length for length, row in zip(lengths, learned[0].split(lengths)) if row.any())


class StepOrder(torch.utils.data.Sampler):
    """The row indices of an epoch, in steps of batch_size rows.

    A permutation drawn from seed and epoch decides which rows make a step. With group_by_length, rows of like length
    meet in a step: blocks of 50 steps are sorted, and the steps shuffled again. Inside a step the rows stand longest
    first: gradients of a step are summed over all its tokens, so their order changes the padding and nothing else.

    multiple: the last step, which may have fewer rows, is filled up to a multiple of it by the index of no row,
    len(lengths) (see FILLER): several processes have the same number of micro batches.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, group_by_length: bool, multiple: int = 1):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.group_by_length = group_by_length
        self.fillers = [len(lengths)] * (-len(lengths) % multiple)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at each epoch's start, and when it resumes inside one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) + len(self.fillers)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if self.group_by_length:
            order = [row for block in _chunks(order, 50 * self.batch_size) for row in self._longest_first(block)]
        steps = list(_chunks(order, self.batch_size))
        full = [step for step in steps if len(step) == self.batch_size]
        rest = steps[len(full) :]
        if self.group_by_length:
            full = [full[index] for index in torch.randperm(len(full), generator=generator).tolist()]
        for step in full + rest:
            yield from self._longest_first(step)
        yield from self.fillers

    def _longest_first(self, rows: list[int]) -> list[int]:
        return sorted(rows, key=lambda row: -self.lengths[row])


def _chunks(values: list[int], size: int) -> Iterator[list[int]]:
    return (values[start : start + size] for start in range(0, len(values), size))
