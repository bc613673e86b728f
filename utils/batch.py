"""A file of prompts into test.json: sorted by length, answered in batches, the journal kept batch by batch.

The batches are cut from all prompts, answered or not: a run that goes on answers the same ones, and so ends with the
answers of a run that nobody disturbed, in bfloat16 too.
"""

import time
from collections.abc import Sequence

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from utils import ranks, runtime
from utils.answers import Answers, Target
from utils.encode import prompt_ids
from utils.errors import DataFault, EnvironmentFault
from utils.generation import Assistant
from utils.prompter import Prompter
from utils.record import warn
from utils.rows import Row, unread_keys

EVERY = 60  # seconds between two lines of progress, where there is no screen for a bar


def encode_all(
    tokenizer: PreTrainedTokenizerBase, prompter: Prompter, prompts: Sequence[Row], context: int, source: str
) -> list[list[int]]:
    """The prompts of `source` as ids. Warns of keys that are not read, and of outputs that the answers will replace.

    Raises DataFault naming the prompts that fill the context (tokens), with counts.
    """
    _warn(prompts, source)
    encoded = [prompt_ids(tokenizer, prompter, row) for row in prompts]
    long = [f"prompt {number} ({len(ids)} tokens)" for number, ids in enumerate(encoded, 1) if len(ids) >= context]
    if long:
        named = ", ".join(long[:20]) + (f" and {len(long) - 20} more" if len(long) > 20 else "")
        raise DataFault(f"{source}: longer than the model's context of {context} tokens: {named}")
    return encoded


def _warn(prompts: Sequence[Row], source: str) -> None:
    unread = unread_keys(prompts)
    named = ", ".join(f'"{key[:80]}" ({count} rows)' for key, count in unread.most_common(5))
    if unread:
        more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
        warn(f"{source}: keys that are not used, only copied into the answers: {named}{more}")
    if replaced := sum("output" in row for row in prompts):
        warn(f'{source}: the "output" of {replaced} rows gives place to the answer (a "reference" is kept)')


def answer_all(target: Target, prompts: Sequence[list[int]], assistant: Assistant, batch_tokens: int) -> None:
    """Answer what `target` lacks of the prompts (id lists), at most batch_tokens tokens at once; several processes
    take a batch each, and the first one writes down what all of them have answered.

    Raises EnvironmentFault where the memory is too small for one prompt.
    """
    sampling = assistant.sampling
    most = min(sampling.max_new_tokens, assistant.context)
    batches = plan(prompts, most, batch_tokens // sampling.num_beams)
    batches = [[index for index in batch if index not in target.done] for batch in batches]
    tokens, before = 0, len(target.done)
    begin = told = time.monotonic()
    with tqdm(total=len(prompts), initial=before, desc="answering", unit="prompt", disable=None) as bar:
        waiting = [batch for batch in batches if batch]
        while waiting:
            batches, waiting = waiting[: ranks.world_size()], waiting[ranks.world_size() :]
            mine = batches[ranks.rank()] if ranks.rank() < len(batches) else []
            results = runtime.gathered(_try(assistant, prompts, mine))
            answers = {index: answer for result in results if result for index, answer in result.items()}
            if answers:
                target.add(answers)
            tokens += sum(answer["tokens"] for answer in answers.values())
            bar.update(len(answers))
            now, done = time.monotonic(), len(target.done)
            speed = f"{tokens / (now - begin):.0f}"
            bar.set_postfix(tokens_per_s=speed)
            if bar.disable and done > before and now - told >= EVERY:  # a log
                told, minutes = now, (len(prompts) - done) * (now - begin) / (done - before) / 60
                print(f"{done} of {len(prompts)} answered, {speed} tokens/s, {minutes:.0f} minutes left", flush=True)
            if failed := [batch for batch, result in zip(batches, results) if result is None]:
                least = min(map(len, failed))
                half = (least + 1) // 2
                bar.write(f"out of memory with {least} prompts at once: at most {half} from here on")
                waiting = [batch[at : at + half] for batch in failed + waiting for at in range(0, len(batch), half)]


def plan(prompts: Sequence[list[int]], most: int, batch_tokens: int) -> list[list[int]]:
    """Indices of the prompts in batches, the longest first, so that a memory that is too small shows at once.

    A batch's tokens are its rows, all as long as its longest prompt, and `most` new ones for each.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: -len(prompts[index])):
        rows = batches[-1] if batches else []
        if rows and (len(rows) + 1) * (len(prompts[rows[0]]) + most) <= batch_tokens:
            rows.append(index)
        else:
            batches.append([index])
    return batches


def _try(assistant: Assistant, prompts: Sequence[list[int]], batch: list[int]) -> Answers | None:
    """The answers of a batch; None where the memory is too small for so many."""
    if not batch:
        return {}
    try:
        return dict(zip(batch, assistant.answers([prompts[index] for index in batch]), strict=True))
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            advice = "reduce --max_new_tokens, or hold the base in fewer bits (--load_8bit True)"
            raise EnvironmentFault(
                f"out of memory with one prompt of {len(prompts[batch[0]])} tokens: {advice}"
            ) from None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine has no more memory: a GPU says so by a class, the CPU by a sentence."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
