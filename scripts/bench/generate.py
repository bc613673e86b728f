"""The ancestor's way of answering a file of prompts against ours, in turn on the same prompts.

    python scripts/demo_model.py --output_dir /tmp/smol
    python scripts/bench/generate.py --base_model /tmp/smol

The ancestor: one prompt at a time, transformers' generate with 4 beams and output_scores. Ours: utils.batch as
generate.py runs it. Every way makes exactly --new_tokens of each prompt (the end of sequence is switched off), so that
all do the same work; its tokens/s are those of the answers, reading the prompts included. The ancestor's ways, which
are long, are measured on every n-th prompt by length (--slow prompts of them).
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import cli

TEST_DATA = Path(__file__).resolve().parents[2] / "test_data"
Prompts = list[list[int]]


def main(
    base_model: str = "",  # a model folder
    ways: tuple[str, ...] = ("ancestor", "greedy", "hf_stream", "ours", "stream", "beams"),  # which of them
    prompts: int = 64,  # so many of test_data's
    slow: int = 8,  # so many for the ways of one prompt at a time
    new_tokens: int = 64,  # of every answer
    batch_tokens: int = 16384,  # generate.py's
    dtype: str = "auto",  # generate.py's
    cpu_time: bool = False,
) -> None:
    """Time the ways one after another: ancestor, greedy (one at a time), ours, beams (ours with 4), int8 (ours with the
    base in 8 bits), hf_stream and stream (one prompt after another, as a reader on the
    page sees it).

    cpu_time: count the seconds that the cores worked instead of those on the clock, for a machine with other work on it
    (with OMP_NUM_THREADS=1: threads that wait for each other work too).
    """
    import torch

    from utils import encode, generation, models, packing, rows, runtime
    from utils.prompter import Prompter

    device = runtime.device()
    tokenizer = models.load_tokenizer(Path(base_model))
    found = [encode.prompt_ids(tokenizer, Prompter("alpaca"), row) for row in rows.read_prompts(TEST_DATA)][:prompts]
    tokenizer.eos_token = None
    few = sorted(found, key=len)[:: max(1, len(found) // slow)][:slow]
    counted = f"{len(found)} prompts of {sum(map(len, found)) / len(found):.0f} tokens, {new_tokens} new"
    print(f"{counted}; {torch.get_num_threads()} threads, {_name(device)}")
    model = models.load_base(Path(base_model), False, False, dtype, device).eval()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assistant = generation.Assistant(model, tokenizer, Prompter("alpaca"), generation.Sampling())
    rate: dict[str, float] = {}
    for way in ways:
        if way == "int8":
            model = models.load_base(Path(base_model), True, False, dtype, device).eval()
            assistant = generation.Assistant(model, tokenizer, Prompter("alpaca"), generation.Sampling())
        if way in ("ours", "stream", "beams"):
            packing.pack(model)  # as generate.py does; what comes behind it has it too
        work, answered = _way(way, assistant, found, few, new_tokens, batch_tokens)
        work(few[:1], 2)  # warm
        begin, used = time.monotonic(), time.process_time()
        work(answered, new_tokens)
        used = time.process_time() - used
        rate[way] = len(answered) * new_tokens / (used if cpu_time else time.monotonic() - begin)
        against = "hf_stream" if way in ("stream", "hf_stream") else "ancestor"
        ratio = f"{rate[way] / rate[against]:.2f} x {against}" if against in rate else ""
        print(f"{way:<10} {len(answered):>3} prompts {rate[way]:>7.1f} tokens/s  {ratio}", flush=True)
    if "stream" in rate:
        _limit(weights, rate["stream"])


def _way(
    way: str, assistant, found: Prompts, few: Prompts, new_tokens: int, batch_tokens: int
) -> tuple[Callable[[Prompts, int], object], Prompts]:
    """(what answers prompts with so many new tokens each, the prompts it is measured on)."""
    model, tokenizer = assistant.model, assistant.tokenizer
    if way in ("ancestor", "greedy", "hf_stream"):
        flags = {"num_beams": 4, "output_scores": True, "return_dict_in_generate": True} if way == "ancestor" else {}
        return lambda prompts, new: [_plain(model, ids, new, flags) for ids in prompts], few
    if way == "stream":
        return lambda prompts, new: [list(_stream(assistant, ids, new)) for ids in prompts], few
    beams = 4 if way == "beams" else 1
    return lambda prompts, new: _ours(model, tokenizer, prompts, new, beams, batch_tokens), found


def _plain(model, ids: Sequence[int], new: int, flags: dict) -> object:
    import torch

    given = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        return model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=new,
            min_new_tokens=new, pad_token_id=0, **flags,
        )  # fmt: skip


def _ours(model, tokenizer, prompts: Prompts, new: int, beams: int, batch_tokens: int) -> None:
    from utils import batch, generation

    sampling = generation.Sampling(num_beams=beams, max_new_tokens=new)
    for chosen in batch.plan(prompts, new, batch_tokens // beams):
        generation.answer_batch(model, tokenizer, [prompts[index] for index in chosen], sampling)


def _stream(assistant, ids: list[int], new: int):
    from dataclasses import replace

    return assistant._stream(ids, replace(assistant.sampling, max_new_tokens=new))


def _name(device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()


def _limit(weights: int, rate: float) -> None:
    """What the memory allows where every weight (bytes of all) is read once a token."""
    import torch

    from utils import runtime

    block = torch.ones(1 << 28, device=runtime.device())
    block.sum().item()
    begin = time.monotonic()
    for _ in range(4):
        block.sum().item()  # waits for a GPU
    speed = 4 * block.nbytes / (time.monotonic() - begin)
    print(
        f"memory {speed / 1e9:.1f} GB/s, weights {weights / 1e6:.0f} MB: one stream can have {speed / weights:.0f} "
        f"tokens/s; ours reaches {rate * weights / speed:.0%}"
    )


if __name__ == "__main__":
    cli.run(main)
