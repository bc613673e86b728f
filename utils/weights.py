"""Weight files: reading an adapter or a base's shards without loading them, writing shards as their tensors come.

What is read is mapped from the disk, not copied: a tensor costs memory only where it is computed with. Nothing in a
file is ever executed.
"""

import json
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import load_file

from utils.errors import ModelFault
from utils.files import write_json

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
BASE_FILES = (("model", ".safetensors"), ("pytorch_model", ".bin"))
SHARD_BYTES = 4 << 30
CHUNK = 8 << 20
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
Weights = dict[str, torch.Tensor]


def adapter_file(folder: Path) -> Path:
    """The adapter's weights in `folder`, safetensors before .bin. Raises ModelFault where there are none."""
    for name in ADAPTER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ModelFault(f"{folder}: no adapter here (neither {' nor '.join(ADAPTER_FILES)})")


def read_config(folder: Path) -> dict:
    """adapter_config.json as a dict; old files with unknown or missing keys are fine. Raises ModelFault."""
    path = folder / "adapter_config.json"
    config = read_object(path)
    if config.get("peft_type", "LORA") != "LORA":
        raise ModelFault(f"{path}: a {config['peft_type']} adapter; this toolkit knows LORA")
    return config


def read_object(path: Path) -> dict:
    """The JSON object in a model's file. Raises ModelFault for a file that is missing, broken or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFault(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelFault(f"{path} cannot be read: not a JSON object")
    return value


def read_weights(path: Path) -> Weights:
    """The tensors of one weight file, mapped. A .bin that needs more than tensors is refused, never executed.

    Raises ModelFault for a file that is truncated, empty or unreadable.
    """
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else _load_bin(path)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ModelFault(f"{path} cannot be read: {(str(error) or 'it is empty').splitlines()[0]}") from None
    except Exception:  # what a pickle that is none makes of the unpickler is anything: KeyError, TypeError, ...
        if path.suffix != ".bin":
            raise
        raise ModelFault(f"{path} is refused: it holds more than weights, or is cut") from None
    if not isinstance(weights, dict) or not weights:
        raise ModelFault(f"{path} holds no weights (an adapter saved empty)")
    if others := [name for name, value in weights.items() if not isinstance(value, torch.Tensor)]:
        raise ModelFault(f'{path} is refused: "{others[0]}" is no tensor')
    return weights


def _load_bin(path: Path) -> Weights:
    """A file of the form before torch 1.6 (no zip archive) cannot be mapped and is read whole."""
    with warnings.catch_warnings(action="ignore"):  # what it would say of a pickle is said by who refuses it
        return torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _shards(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that hold a base's weights, safetensors before .bin, and its index {tensor: file} where it has one."""
    for stem, suffix in BASE_FILES:
        index, places = folder / f"{stem}{suffix}.index.json", {}
        found = sorted(path.name for path in folder.glob(f"{stem}-*-of-*{suffix}"))
        if (folder / f"{stem}{suffix}").is_file():
            names = [f"{stem}{suffix}"]
        elif index.is_file():
            places = _read_index(index)
            names = sorted(set(places.values()))
        elif found:
            count = int(found[0].removesuffix(suffix).rpartition("-")[2])
            names = [f"{stem}-{number:05d}-of-{count:05d}{suffix}" for number in range(1, count + 1)]
        else:
            continue
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ModelFault(f"{folder}: the shard {missing[0]} is missing ({len(names)} in all)")
        return [folder / name for name in names], places
    raise ModelFault(f"{folder}: no weights here (model*.safetensors or pytorch_model*.bin)")


def _read_index(path: Path) -> dict[str, str]:
    places = read_object(path).get("weight_map")
    if not isinstance(places, dict) or not places or any(Path(str(name)).name != name for name in places.values()):
        raise ModelFault(f"{path}: no weight_map of file names beside it")
    return places


def read_base(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, mapped tensor) of every weight of a base, shard by shard. Raises ModelFault naming a bad shard."""
    for path in _shards(folder)[0]:
        for name, tensor in read_weights(path).items():
            yield name, tensor.detach()


def layout(folder: Path) -> Weights:
    """Every weight of a base as an empty tensor on the meta device: its name, shape and dtype.

    Opens every shard. Raises ModelFault naming the shard that is missing, cut, or lacks a tensor of the index.
    """
    found = {name: torch.empty_like(tensor, device="meta") for name, tensor in read_base(folder)}
    places = _shards(folder)[1]
    if missing := [name for name in places if name not in found]:
        raise ModelFault(f"{folder}: {missing[0]} is not in {places[missing[0]]}, where the index has it")
    return found


class ShardWriter:
    """Safetensors shards of at most SHARD_BYTES whose layout is known, so that each tensor goes to the disk at once.

    layout: every tensor to come, empty, on the meta device; they are written in any order. Source of the format: the
    safetensors README (length of the header, JSON header, data; here, as there, wide dtypes first, so all are aligned).
    """

    def __init__(self, folder: Path, layout: Weights):
        self.folder = folder
        self.places: dict[str, tuple[Path, int]] = {}
        self.split = split_state_dict_into_shards_factory(
            layout,
            get_storage_size=lambda tensor: tensor.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=SHARD_BYTES,
        )
        for file_name, names in self.split.filename_to_tensors.items():
            self._begin(file_name, {name: layout[name] for name in names})

    def _begin(self, file_name: str, shard: Weights) -> None:
        header: dict = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, tensor in sorted(shard.items(), key=lambda item: (-item[1].itemsize, item[0])):
            start, end = end, end + tensor.nbytes
            header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(header, ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        (self.folder / file_name).write_bytes(struct.pack("<Q", len(text)) + text)
        for name in shard:
            self.places[name] = self.folder / file_name, 8 + len(text) + header[name]["data_offsets"][0]

    def write(self, name: str, tensor: torch.Tensor) -> tuple[Path, int]:
        """Write one tensor into its place; returns that place: file, offset in bytes."""
        path, offset = self.places[name]
        with open(path, "r+b", buffering=0) as file:
            file.seek(offset)
            data = memoryview(as_bytes(tensor).numpy())
            while data:
                data = data[file.write(data[:CHUNK]) :]
        return path, offset

    def close(self) -> None:
        """Write the index, where there is more than one shard."""
        if self.split.is_sharded:
            index = {"metadata": self.split.metadata, "weight_map": self.split.tensor_to_filename}
            write_json(self.folder / "model.safetensors.index.json", index)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, uint8 (bytes,), without a copy where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def read_back(path: Path, offset: int, size: int) -> Iterator[memoryview]:
    """What lies on the disk from `offset` on, uint8, piece by piece: each is valid until the next is asked for."""
    buffer = memoryview(bytearray(min(CHUNK, size)))
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        for start in range(0, size, CHUNK):
            yield buffer[: file.readinto(buffer[: size - start])]
