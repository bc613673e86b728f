"""Weight files: reading an adapter or a base's shards without loading them, writing shards as their tensors come.

What is read is mapped from the disk, not copied: a tensor costs memory only where it is computed with. Nothing in a
file is ever executed.
"""

import json
import os
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
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


def shard_files(folder: Path) -> list[Path]:
    """The files that hold a base's weights, safetensors before .bin. Raises ModelFault naming a missing shard."""
    for stem, suffix in BASE_FILES:
        if (folder / f"{stem}{suffix}").is_file():
            return [folder / f"{stem}{suffix}"]
        found = sorted(folder.glob(f"{stem}-*-of-*{suffix}"))
        index = folder / f"{stem}{suffix}.index.json"
        if index.is_file():
            names = sorted(set(read_index(index).values()))
        elif found:
            count = int(found[0].stem.rpartition("-")[2])
            names = [f"{stem}-{number:05d}-of-{count:05d}{suffix}" for number in range(1, count + 1)]
        else:
            continue
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ModelFault(f"{folder}: the shard {missing[0]} is missing ({len(names)} in all)")
        return [folder / name for name in names]
    raise ModelFault(f"{folder}: no weights here (model*.safetensors or pytorch_model*.bin)")


def read_index(path: Path) -> dict[str, str]:
    """{tensor name: file name} of a sharded model. Raises ModelFault."""
    places = read_object(path).get("weight_map")
    if not isinstance(places, dict) or not places or any(Path(str(name)).name != name for name in places.values()):
        raise ModelFault(f"{path}: no weight_map of file names beside it")
    return places


def read_base(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, mapped tensor) of every weight of a base, shard by shard. Raises ModelFault."""
    for path in shard_files(folder):
        for name, tensor in read_weights(path).items():
            yield name, tensor.detach()


def layout(folder: Path) -> Weights:
    """Every weight of a base as an empty tensor on the meta device: its name, shape and dtype.

    Opens every shard. Raises ModelFault naming the shard that is missing, cut, or lacks a tensor of the index.
    """
    found = {name: torch.empty_like(tensor, device="meta") for name, tensor in read_base(folder)}
    files = shard_files(folder)
    stem = next(stem for stem, suffix in BASE_FILES if suffix == files[0].suffix)
    index = folder / f"{stem}{files[0].suffix}.index.json"
    places = read_index(index) if files[0].stem != stem and index.is_file() else {}
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
        shards: list[Weights] = [{}]
        size = 0
        for name, tensor in layout.items():
            if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
                shards.append({})
                size = 0
            shards[-1][name] = tensor
            size += tensor.nbytes
        count = len(shards)
        self.names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        self.names = self.names if count > 1 else ["model.safetensors"]
        self.total = sum(tensor.nbytes for tensor in layout.values())
        self.places: dict[str, tuple[str, int]] = {}
        for name, shard in zip(self.names, shards, strict=True):
            self._begin(name, shard)

    def _begin(self, file_name: str, shard: Weights) -> None:
        ordered = sorted(shard.items(), key=lambda item: (-item[1].itemsize, item[0]))
        header: dict = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, tensor in ordered:
            start, end = end, end + tensor.nbytes
            header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(header, ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        (self.folder / file_name).write_bytes(struct.pack("<Q", len(text)) + text)
        for name in shard:
            self.places[name] = file_name, 8 + len(text) + header[name]["data_offsets"][0]

    def write(self, name: str, tensor: torch.Tensor) -> tuple[Path, int]:
        """Write one tensor into its place; returns that place: file, offset in bytes."""
        file_name, offset = self.places[name]
        with open(self.folder / file_name, "r+b", buffering=0) as file:
            file.seek(offset)
            data = memoryview(as_bytes(tensor).numpy())
            while data:
                data = data[file.write(data[:CHUNK]) :]
        return self.folder / file_name, offset

    def close(self) -> None:
        """Write the index, where there is more than one shard."""
        if len(self.names) > 1:
            places = {name: file_name for name, (file_name, _) in self.places.items()}
            index = {"metadata": {"total_size": self.total}, "weight_map": places}
            write_json(self.folder / "model.safetensors.index.json", index)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, uint8 (bytes,), without a copy where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two uint8 tensors of one length are equal; eight bytes at a time where they lie for it."""
    whole = len(one) // 8 * 8
    if (one.storage_offset() | other.storage_offset()) % 8:
        return torch.equal(one, other)
    words = torch.equal(one[:whole].view(torch.int64), other[:whole].view(torch.int64))
    return words and torch.equal(one[whole:], other[whole:])


class Scratch:
    """Two pieces of memory used in turns: fresh memory for each tensor would cost more than its arithmetic.

    While one tensor is proven the next one is computed, so a piece is free again when it is asked for."""

    def __init__(self):
        self.pieces = [torch.empty(0, dtype=torch.uint8) for _ in range(2)]

    def like(self, empty: torch.Tensor) -> torch.Tensor:
        """Room of the shape and dtype of `empty` (which may be on the meta device)."""
        self.pieces.reverse()
        if len(self.pieces[0]) < empty.nbytes:
            self.pieces[0] = torch.empty(empty.nbytes, dtype=torch.uint8)
        return self.pieces[0][: empty.nbytes].view(empty.dtype).reshape(empty.shape)


def read_back(path: Path, offset: int, size: int) -> Iterator[torch.Tensor]:
    """What lies on the disk from `offset` on, uint8, piece by piece: each is valid until the next is asked for."""
    buffer = torch.empty(CHUNK, dtype=torch.uint8)
    handle = os.open(path, os.O_RDONLY)
    try:
        for start in range(0, size, CHUNK):
            piece = buffer[: min(CHUNK, size - start)]
            os.preadv(handle, [piece.numpy()], offset + start)
            yield piece
    finally:
        os.close(handle)
