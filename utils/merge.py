"""W + scale * B @ A, tensor by tensor: a base and its adapters into plain weights that transformers loads as they are.

Each tensor is mapped from the disk, changed block by block, written, read back and hashed. Source of the arithmetic:
LoRA (Hu et al. 2021), scale = alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023); in float32, in PEFT's
order of operations. What is to be merged is utils.planning's concern.
"""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from utils import proof, vocabulary, weights
from utils.errors import ModelFault
from utils.files import write_json
from utils.lora import Change, blocks
from utils.planning import Plan

REPORT = "merge_report.json"


class Scratch:
    """Two pieces of memory used in turns: fresh memory for each tensor would cost more than its arithmetic.

    While one tensor is proven the next one is computed, so a piece is free again when it is asked for.
    """

    def __init__(self) -> None:
        self.pieces = [torch.empty(0, dtype=torch.uint8) for _ in range(2)]

    def like(self, empty: torch.Tensor) -> torch.Tensor:
        """Room of the shape and dtype of `empty` (which may be on the meta device)."""
        self.pieces.reverse()
        if len(self.pieces[0]) < empty.nbytes:
            self.pieces[0] = torch.empty(empty.nbytes, dtype=torch.uint8)
        return self.pieces[0][: empty.nbytes].view(empty.dtype).reshape(empty.shape)


def merged(weight: torch.Tensor, change: Change | None, empty: torch.Tensor, scratch: Scratch) -> torch.Tensor:
    """The merged weight, of the shape and dtype of `empty`: the mapped one itself, or one computed into `scratch`.

    The sum is formed in float32 and rounded once, however many adapters there are.
    """
    start = weight if change is None or change.whole is None else change.whole
    deltas = change.deltas if change else []
    if not deltas and start.dtype == empty.dtype:
        return start
    result = scratch.like(empty)
    if not start.ndim:
        return result.copy_(start)
    factors = [(delta.b, delta.a.float(), delta.scale) for delta in deltas]
    for rows in blocks(start):
        block = start[rows].to(torch.promote_types(start.dtype, torch.float32), copy=True)
        for b, a, scale in factors:
            block += (b[rows].float() @ a).mul_(scale)
        result[rows] = block
    return result


@torch.inference_mode()
def write(plan: Plan, target: Path) -> dict:
    """Write the merged model into `target` (an empty folder) and prove each tensor while the next one is computed.

    Returns the report: "tensors" {"changed", "unchanged"}: {name: SHA-256 of its bytes on the disk}, "vocabulary",
    "seconds" and "peak_anonymous_bytes". Raises ModelFault when what lies on the disk is not what it must be.
    """
    writer, scratch = weights.ShardWriter(target, plan.layout), Scratch()
    proofs: dict[str, dict] = {}
    seconds = dict.fromkeys(("arithmetic", "writing", "waiting_for_the_proof"), 0.0)
    peak = 0
    pending: dict[str, Future[dict]] = {}
    with _one_processor_less(), ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        read = weights.read_base(plan.base)
        for name, weight in tqdm(read, "merging", len(plan.layout), unit="tensor", disable=None):
            if name not in plan.layout:  # a second copy of tied embeddings
                continue
            marks = [time.perf_counter()]
            change = plan.changes.get(name)
            result = merged(weight, change, plan.layout[name], scratch)
            marks.append(time.perf_counter())
            place = writer.write(name, result)
            peak = max(peak, _anonymous_bytes())
            marks.append(time.perf_counter())
            proofs |= {earlier: future.result() for earlier, future in pending.items()}
            pending = {name: pool.submit(proof.prove, name, weight, change, result, place)}
            marks.append(time.perf_counter())
            for key, before, after in zip(seconds, marks, marks[1:]):
                seconds[key] += after - before
        proofs |= {earlier: future.result() for earlier, future in pending.items()}
    writer.close()
    _copy_small_files(plan, target)
    if _kinds(weights.layout(target)) != _kinds(plan.layout):
        raise ModelFault(f"{target}: the shards do not hold the tensors that were written")
    return _report(plan, proofs, seconds, peak)


def _kinds(layout: weights.Weights) -> dict[str, tuple]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in layout.items()}


@contextmanager
def _one_processor_less() -> Iterator[None]:
    """Leave a processor to the proof: threads that wait for each other's would take twice the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _anonymous_bytes() -> int:
    """Memory of this process that no file backs (RssAnon); 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def check_whole(output: Path) -> None:
    """Raises ModelFault where a finished merge has lost weights since."""
    hashes = weights.read_object(output / REPORT)["tensors"]
    if weights.layout(output).keys() != hashes["changed"].keys() | hashes["unchanged"].keys():
        raise ModelFault(f"{output}: its weights are not those that were merged (remove it and merge again)")


def _report(plan: Plan, proofs: dict[str, dict], seconds: dict[str, float], peak: int) -> dict:
    hashes: dict[str, dict[str, str]] = {"changed": {}, "unchanged": {}}
    for name, proven in proofs.items():
        hashes["changed" if proven["changed"] else "unchanged"][name] = proven["sha256"]
    if not hashes["changed"]:
        raise ModelFault("the merge changes nothing: every lora_B is zero, or all changes vanish in the base's dtype")
    rows = {name: proof["rows"] for name, proof in proofs.items() if "rows" in proof}
    entries = vocabulary.tokenizer_size(plan.tokenizer) if plan.tokenizer else None
    sizes = {"rows": plan.rows, "base_rows": plan.base_rows, "tokenizer_entries": entries}
    return {
        "tensors": {"counts": {kind: len(names) for kind, names in hashes.items()}, **hashes},
        "vocabulary": {**sizes, "tied": plan.tied, "embeddings": rows},
        "seconds": {key: round(value, 3) for key, value in seconds.items()},
        "peak_anonymous_bytes": peak,
    }


def _copy_small_files(plan: Plan, target: Path) -> None:
    """Configuration with the merged vocabulary's size and dtype, generation settings, the tokenizer that belongs."""
    config = dict(plan.config)
    if plan.rows is not None:
        config["vocab_size"] = plan.rows
    config |= {key: str(plan.dtype).removeprefix("torch.") for key in ("dtype", "torch_dtype") if key in config}
    if plan.tied:
        config["tie_word_embeddings"] = True
    write_json(target / "config.json", _right_ids(config, plan.config))
    generation = plan.base / "generation_config.json"
    if generation.is_file():
        write_json(target / generation.name, _right_ids(weights.read_object(generation), plan.config))
    if plan.tokenizer:
        vocabulary.copy_tokenizer(plan.tokenizer, target)


def _right_ids(settings: dict, config: dict) -> dict:
    """LLaMA conversions of early 2023 say BOS 0, EOS 1, padding -1, where their tokenizer has 1, 2 and none."""
    if config.get("model_type") != "llama" or (config.get("bos_token_id"), config.get("eos_token_id")) != (0, 1):
        return settings
    return {**settings, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


def summary(report: dict) -> str:
    """The report in a line."""
    counts, rows, forward = report["tensors"]["counts"], report["vocabulary"], report["forward"]
    parts = [f"{counts['changed']} of {sum(counts.values())} tensors changed"]
    if rows["rows"] != rows["base_rows"]:
        parts.append(f"vocabulary {rows['base_rows']} -> {rows['rows']}")
    if forward:
        same = f"{forward['greedy_tokens_same']} of {forward['greedy_tokens']} greedy tokens"
        parts.append(f"logits differ by at most {forward['largest_difference']:.2g}, {same} the same")
    return ", ".join([*parts, f"{report['seconds']['all']:.1f} s"])
