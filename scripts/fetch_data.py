"""Fetch the raw sets that may be had from the Hugging Face Hub, each file to where scripts/prepare-data.sh looks.

    python scripts/fetch_data.py --raw_dir data/raw

PsyQA is never fetched: its user agreement forbids redistribution, copies on the Hub included. The others that are not
here (baize, couplets, Alpaca-GPT4) are published on GitHub; see data/README.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import cli
from utils.errors import ArgumentFault, DataFault, EnvironmentFault, first_line

HUB = {  # folder under --raw_dir: data set on the Hub, its files
    "firefly": ("YeungNLP/firefly-train-1.1M", ("firefly-train-1.1M.jsonl",)),
    "COIG": (
        "BAAI/COIG",
        (
            "human_value_alignment_instructions_part1.json",
            "human_value_alignment_instructions_part2.json",
            "exam_instructions.jsonl",
            "translated_instructions.jsonl",
            "leetcode_instructions.jsonl",
            "counterfactural_correction_multi_round_chat.tar.gz",
        ),
    ),
    "belle": ("BelleGroup/train_0.5M_CN", ("Belle_open_source_0.5M.json",)),
}


def main(raw_dir: str = "") -> None:
    """Fetch what is not there yet of Firefly, COIG and BELLE.

    --raw_dir: the folder that gets a folder a set. A file that is there already is left alone.
    """
    if not raw_dir:
        raise ArgumentFault("--raw_dir is missing")
    for folder, (name, files) in HUB.items():
        for file in files:
            if (Path(raw_dir) / folder / file).is_file():
                continue
            print(f"{folder}/{file}: from {name}", flush=True)
            _fetch(name, file, Path(raw_dir) / folder)


def _fetch(name: str, file: str, folder: Path) -> None:
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        hf_hub_download(name, file, repo_type="dataset", local_dir=folder)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError):
        raise EnvironmentFault(
            f"{name}/{file}: the Hub cannot be reached (offline, or HF_HUB_OFFLINE is set)"
        ) from None
    except HfHubHTTPError as error:
        raise DataFault(f"{name}/{file}: {first_line(error)}") from None


if __name__ == "__main__":
    cli.run(main)
