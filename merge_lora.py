r"""Merge adapters into their base: plain weights with a tokenizer, which transformers loads as they are.

    python merge_lora.py --base_model models/llama-13b --lora_model models/chinese-alpaca-lora-13b \
        --output_dir models/merge-13b-alpaca

    python merge_lora.py --base_model models/llama-13b --output_dir models/merge-13b-alpaca-plus \
        --lora_model models/chinese-llama-plus-lora-13b,models/chinese-alpaca-plus-lora-13b
"""

import time
from pathlib import Path
from typing import Any

from utils import checks, cli


def main(
    base_model: str = "",  # the base: a folder, or a Hub name
    lora_model: str = "",
    output_dir: str = "",  # a folder that is not there yet, or empty
    # added to the original's
    dtype: str = "auto",
    verify: bool = True,
    force_base: bool = False,  # accept an adapter that was trained on another base
) -> None:
    """Write base_model + lora_model, in full precision, into output_dir (a new folder), with merge_report.json.

    lora_model: one adapter, or several merged in order: A,B.
    dtype: auto keeps that of the base's weights.
    verify: run base + adapters and the merged model on a few prompts, and refuse a difference beyond rounding;
    it needs the memory of one whole model. Without it every tensor is still read back and checked.
    """
    started = time.monotonic()
    checks.merging(dict(locals()))

    from utils import files, hub, lora, merge, merged, planning, record, weights

    # --- What is merged with what, and whether that is done already ---
    base_folder = hub.local_folder(base_model, "base_model")
    folders = [hub.local_folder(name, "lora_model") for name in hub.adapter_names(lora_model)]
    hashes = [files.sha256_file(weights.adapter_file(folder)) for folder in folders]
    base = record.describe_base(base_model, base_folder)
    run = merged.describe(base, list(zip(folders, hashes, strict=True)), dtype, output_dir)
    if merged.is_same(output_dir, run):
        merge.check_whole(Path(output_dir))
        print(f"{output_dir} is already complete")
        return
    files.check_empty(Path(output_dir))
    merged.check(run, force_base)

    # --- Whether all of it fits, before a byte is written ---
    adapters = [lora.read(folder) for folder in folders]
    plan = planning.plan(base_folder, adapters, dtype)
    prepared = prepare_proof(plan) if verify else {}

    # --- Tensor by tensor into a folder that takes its name when it is whole and proven ---
    with files.new_folder(Path(output_dir), plan.bytes) as staging:
        report = merge.write(plan, staging)
        report["forward"] = forward_proof(plan, adapters, staging, **prepared) if verify else None
        report["seconds"]["all"] = round(time.monotonic() - started, 3)
        files.write_json(staging / merge.REPORT, report)
        files.write_json(staging / record.NAME, run)
    print(f"{output_dir} is complete: {merge.summary(report)}")


def prepare_proof(plan: Any) -> dict:
    """The proof's prompts in the merged model's tokenizer, and the device and dtype in which one model fits."""
    import torch

    from utils import models, proof, runtime

    device, held = proof.place(plan.weights, plan.bytes, [runtime.device(), torch.device("cpu")])
    prompts = proof.prompts(models.load_tokenizer(plan.tokenizer or plan.base))
    return {"prompts": prompts, "device": device, "held": held}


def forward_proof(plan: Any, parts: list, merged: Path, prompts: list[list[int]], device: Any, held: str) -> dict:
    """Base + adapters, then the merged model, one after the other in memory, on the same prompts."""
    from utils import adapters, models, proof

    base = models.load_base(plan.base, False, False, held, device)
    wanted = proof.trace(adapters.unmerged(base, parts), prompts)
    del base
    return proof.compare(models.load_base(merged, False, False, held, device), plan.dtype, wanted)


if __name__ == "__main__":
    cli.run(main)
