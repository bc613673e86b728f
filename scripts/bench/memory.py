"""The dry run's memory estimate against the memory that the same run takes: peak resident size on a CPU.

    python scripts/bench/memory.py --base_model models/demo/merge-13b-alpaca --data_path rows.json --rows 24

One line a setting: estimate, measured peak, estimate / peak. Leaves with 1 when one is outside 0.9 to 1.3.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils import cli

ROOT = Path(__file__).resolve().parents[2]
PEAK = (
    "import runpy, sys; from pathlib import Path; sys.argv = sys.argv[1:]\n"
    "sys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
    "{before}runpy.run_path(sys.argv[0], run_name='__main__')\n"
    "print('peak', Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
)


FULL = "import utils.memory; utils.memory.free_bytes = lambda *_: 0\n"


def measure(script: str, flags: dict, recompute: bool = False) -> tuple[float, float]:
    """(estimated, measured) peak in GB of one run of the script with these flags.

    recompute: as on a device where the activations do not fit.
    """
    command = [
        sys.executable,
        "-c",
        PEAK.format(before=FULL if recompute else ""),
        str(ROOT / script),
        *(f"--{key}={value}" for key, value in flags.items()),
    ]
    shown, ran = (
        subprocess.run(
            [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
        ).stdout
        for more in (["--dry_run"], [])
    )
    return float(re.search(r"memory: ([\d.]+) GB", shown).group(1)), 1024 * int(ran.split()[-1]) / 1e9


def main(
    base_model: str = "",  # a model folder
    data_path: str = "",  # a JSON array of rows
    rows: int = 24,  # so many of it
    micro_batches: tuple[str, ...] = ("1", "4", "8"),  # rows on the device at once
    cutoffs: tuple[str, ...] = ("256", "512"),  # tokens of a row
    more: tuple[str, ...] = (),
    script: str = "finetune.py",
    recompute: bool = False,
) -> None:
    """Measure every micro batch with every cutoff on the first `rows` rows of a JSON array.

    more: other flags, e.g. load_8bit=True,dtype=float32. script: finetune.py or finetune_bloom.py.
    recompute: with activations computed again in the backward pass, as where they do not fit.
    """
    chosen = json.loads(Path(data_path).read_text(encoding="utf-8"))[:rows]
    outside = False
    for cutoff in cutoffs:
        for micro in map(int, micro_batches):
            with tempfile.TemporaryDirectory() as folder:
                data = Path(folder) / "rows.json"
                data.write_text(json.dumps(chosen), encoding="utf-8")
                flags = {"base_model": base_model, "data_path": data, "output_dir": f"{folder}/out"}
                flags |= {"batch_size": 2 * micro, "micro_batch_size": micro, "cutoff_len": cutoff, "num_epochs": 1}
                flags |= {"val_set_size": 4, "load_8bit": False, "train_on_inputs": False}
                estimate, peak = measure(script, flags | dict(pair.split("=") for pair in more), recompute)
            outside |= not 0.9 <= estimate / peak <= 1.3
            print(
                f"{micro} x {cutoff}: {estimate:.2f} GB estimated, {peak:.2f} GB measured, {estimate / peak:.2f}",
                flush=True,
            )
    sys.exit(1 if outside else 0)


if __name__ == "__main__":
    cli.run(main)
