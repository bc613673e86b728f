"""The end of demo.sh: losses of every stage, a picture of them, answers before and after, the command for the page.

python scripts/demo_report.py --output_dir output/demo --answers output/demo/rerun-2-alpaca-13b-3/test.json
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import cli, record
from utils.errors import ModelFault

STAGES = {
    "run-2-alpaca-13b-1": "firefly-train-0",
    "rerun-2-alpaca-13b-2": "COIG-part1",
    "rerun-2-alpaca-13b-2-2": "COIG-translate",
    "rerun-2-alpaca-13b-3": "PsyQA-5",
}
NEEDED = 3


def main(
    output_dir: str = "output/demo",  # demo.sh's OUTPUT_DIR
    answers: str = "",  # test.json of the last stage
) -> None:
    """Print the report. Exits with 1 when fewer than three stages lowered their validation loss."""
    from utils import plots

    output = Path(output_dir)
    show_answers(output / "before.json", Path(answers))
    lowered = show_losses(output)
    plots.loss({f"{name}\n{STAGES[name]}": output / name / "metrics.jsonl" for name in STAGES}, output / "loss.png")
    print(f"\nThe curves: {output / 'loss.png'}\nThe merged model: {output / 'merged'}\nTalk to it:\n")
    print(
        f"    MODEL_DIR=./models/demo OUTPUT_DIR=./{output} LOAD_8BIT=False bash scripts/generate-2-alpaca-13b-3.sh\n"
    )
    if lowered < NEEDED:
        print(f"only {lowered} of {len(STAGES)} stages lowered their validation loss", file=sys.stderr)
        sys.exit(1)


def show_answers(before: Path, after: Path) -> None:
    """Each prompt with the answer of the base and of the last stage."""
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (before, after))
    for number, (was, now) in enumerate(zip(old, new, strict=True), 1):
        print(f"\n[{number}] {now['instruction']} {now.get('input', '')}".rstrip())
        for label, row in (("before", was), ("after ", now)):
            print(f"    {label} | {' '.join(row['output'].split())}")


def show_losses(output: Path) -> int:
    """A line a stage; returns how many stages lowered their validation loss."""
    print(f"\n{'stage':<24} {'data':<16} {'rows':>5} {'validation loss, start -> best':>31} {'tokens/s':>9}")
    lowered = 0
    for name, data in STAGES.items():
        run = record.read(output / name)
        if run is None:
            raise ModelFault(f"{output / name} has no run.json")
        start, best = run["losses"]["start"], run["losses"]["best"]
        lowered += best < start
        rows, speed = run["rows"]["training"]["rows"], run["speed"]["tokens_per_second"]
        print(f"{name:<24} {data:<16} {rows:>5} {start:>21.3f} -> {best:.3f} {speed:>9.0f}")
    return lowered


if __name__ == "__main__":
    cli.run(main)
