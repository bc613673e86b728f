"""An adapter's tensors by the base weights they change: what PEFT writes, of 2023 and of today, and what is refused."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from utils import weights
from utils.errors import ModelFault
from utils.weights import Weights

PREFIX = "base_model.model."
# Where input and output embeddings stand in causal models.
INPUT = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight", "embed_in.weight")
OUTPUT = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = INPUT + OUTPUT
UNSUPPORTED = (
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "alora_invocation_tokens", "layer_replication",
    "target_parameters", "trainable_token_indices", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
# What can be merged and is not trained on.
MERGED_ONLY = (
    "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "exclude_modules", "fan_in_fan_out",
)  # fmt: skip
# Ways to initialise LoRA that subtract from the base model what they put into the adapter.
CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
BLOCK = 1 << 20  # elements computed at once: 4 MB in float32, which stays in the processor's cache


@dataclass(frozen=True)
class Delta:
    """scale * b @ a, to be added to a weight. a: (rank, in), b: (out, rank)."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), of the weight it is for."""
        return self.b.shape[0], self.a.shape[1]

    def transposed(self) -> "Delta":
        """The same for a weight stored as (in, out): embeddings, and GPT-2's layers."""
        return Delta(self.b.T, self.a.T, self.scale)


@dataclass
class Change:
    """What the adapters make of one weight: `whole` replaces it (None: the base's stays), then deltas are added."""

    whole: torch.Tensor | None = None
    deltas: list[Delta] = field(default_factory=list)


def unsupported(config: dict) -> list[str]:
    """What an adapter_config.json asks for that this toolkit does not compute, by name."""
    found = [key for key in UNSUPPORTED if config.get(key)]
    if config.get("bias", "none") not in ("none", None):
        found.append(f"bias {config['bias']}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGED_BASES):
        found.append(f"init_lora_weights {start} (it changed the base model)")
    return found


def not_plain(config: dict) -> list[str]:
    """What it asks for beside one rank and one alpha, in whole numbers, on the layers of a list of names."""
    found = unsupported(config) + [key for key in MERGED_ONLY if config.get(key)]
    for key in ("r", "lora_alpha"):
        number = config.get(key, 1)
        if not isinstance(number, int | float) or number <= 0 or number % 1 != 0:
            found.append(f"{key} {number}")
    targets = config.get("target_modules") or []
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        found.append(f"target_modules {targets}")
    return found


def blocks(tensor: torch.Tensor) -> Iterator[slice]:
    """Its rows in pieces of about BLOCK elements."""
    rows = max(1, BLOCK // max(1, tensor[0].numel())) if len(tensor) else 1
    return (slice(start, start + rows) for start in range(0, len(tensor), rows))


class Adapter:
    """An adapter's tensors by the base model's modules.

    deltas: {weight name: Delta}; whole: {weight name: tensor that replaces it} (modules_to_save, grown embeddings);
    lora: the tensors behind the deltas, under PEFT's names; saved: modules_to_save. Raises ModelFault, naming it, for
    what this toolkit does not merge (DoRA, trained biases, bases changed at the start, ...) and for tensors that are
    incomplete, misshapen or not finite.
    """

    def __init__(self, folder: Path, config: dict, tensors: Weights):
        self.folder, self.config = folder, config
        self.deltas: dict[str, Delta] = {}
        self.whole: Weights = {}
        self.lora: Weights = {}
        if found := unsupported(config):
            raise ModelFault(f"{folder}: {', '.join(found)} cannot be merged by this toolkit")
        refuse_merged_linear(folder, config, tensors)
        saved = config.get("modules_to_save") or []
        if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
            raise ModelFault(f"{folder}/adapter_config.json: modules_to_save {saved} is no list of names")
        self.saved = tuple(saved)
        pairs: dict[tuple[str, str], Weights] = {}  # (module, kind of LoRA) -> its A and B
        for name, tensor in tensors.items():
            if not tensor.numel():
                raise ModelFault(f"{folder}: {name} is empty")
            if tensor.is_floating_point() and not all(map(torch.isfinite, tensor.detach().aminmax())):
                raise ModelFault(f"{folder}: {name} holds NaN or infinity")
            target = name.removeprefix(PREFIX)
            if part := re.fullmatch(r"(.+)\.(lora_|lora_embedding_)([AB])(\.weight)?", target):
                self.lora[name] = pairs.setdefault((part[1], part[2]), {})[part[3]] = tensor.detach()
            elif "lora_" in target or "trainable_tokens" in target:
                raise ModelFault(f"{folder}: {target} is neither lora_A nor lora_B, it cannot be merged")
            elif ".original_module." not in target:
                self.whole[target.replace(".modules_to_save.", ".").replace(".base_layer.", ".")] = tensor.detach()
        for (module, kind), pair in pairs.items():
            if missing := {"A", "B"} - pair.keys():
                raise ModelFault(f"{folder}: {module} has no {kind}{missing.pop()}")
            delta = Delta(pair["A"], pair["B"], self._scale(module, pair["A"], pair["B"]))
            self.deltas[f"{module}.weight"] = delta.transposed() if kind == "lora_embedding_" else delta

    def _scale(self, module: str, a: torch.Tensor, b: torch.Tensor) -> float:
        """Its alpha / r, or alpha / sqrt(r) for rsLoRA; the patterns name modules with their own."""
        try:
            rank = self._of("rank_pattern", module, self.config.get("r", a.shape[0]))
            alpha = self._of("alpha_pattern", module, self.config["lora_alpha"])
            if type(rank) is not int or rank < 1 or not math.isfinite(alpha):
                raise ValueError(f"r {rank}, lora_alpha {alpha}")
        except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
            problem = f"no usable r, lora_alpha or patterns ({error})"
            raise ModelFault(f"{self.folder}/adapter_config.json: {problem}") from None
        if a.ndim != 2 or b.ndim != 2 or (a.shape[0], b.shape[1]) != (rank, rank):
            shapes = f"lora_A {list(a.shape)} and lora_B {list(b.shape)}, the rank is {rank}"
            raise ModelFault(f"{self.folder}: {module} has {shapes}")
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def _of(self, key: str, module: str, usual: Any) -> Any:
        """PEFT's rule: the first pattern that is the module's name, or what it ends in behind a dot."""
        patterns = self.config.get(key) or {}
        return next((value for name, value in patterns.items() if re.match(rf"(.*\.)?({name})$", module)), usual)

    def _targets(self) -> re.Pattern | None:
        """What the names of the weights match that target_modules names; None where it does not name any."""
        targets = self.config.get("target_modules")
        try:
            if isinstance(targets, list):
                targets = rf"(.*\.)?({'|'.join(map(re.escape, targets))})"
            if not isinstance(targets, str) or targets == "all-linear":
                return None
            return re.compile(rf"(?:{targets})\.weight")
        except (re.error, TypeError) as error:
            raise ModelFault(f"{self.folder}/adapter_config.json: target_modules {targets}: {error}") from None

    def check_targets(self, places: set[str], layout: Weights) -> None:
        """Hold the deltas against the modules that adapter_config.json targets.

        places: names of the base's weights that the adapter changes. Raises ModelFault for a delta too many, and for a
        module of the base that is left out.
        """
        lost = [name for name in layout if name.removesuffix(".weight").endswith(self.saved) and name not in places]
        if lost:
            raise ModelFault(f"{self.folder}: {lost[0]} is in modules_to_save, and not in the adapter (a cut adapter)")
        targets = self._targets()
        if targets is None:
            return
        if extra := [name for name in self.deltas if not targets.fullmatch(name)]:
            count = f"{len(extra)} of its layers are not in target_modules, the first is {extra[0]}"
            raise ModelFault(f"{self.folder}: {count} (tensors of one adapter beside the configuration of another)")
        if any(self.config.get(key) for key in ("layers_to_transform", "exclude_modules")):
            return
        wanted = [name for name, tensor in layout.items() if tensor.ndim == 2 and targets.fullmatch(name)]
        if left_out := [name for name in wanted if name not in places]:
            count = f"{len(left_out)} of the layers it is for are in the base and not in it, the first is {left_out[0]}"
            raise ModelFault(f"{self.folder}: {count} (a cut adapter, or one for a smaller model)")


def refuse_merged_linear(source: Path, config: dict, tensors: Weights) -> None:
    """Raises ModelFault for the form that PEFT 0.2 gave an adapter of one target module (BLOOM's query_key_value).

    Its names are those of today; its lora_A has two ranks, its lora_B three dimensions, for two thirds of the outputs.
    """
    b_dimensions = {tensor.ndim for name, tensor in tensors.items() if name.endswith(("lora_B.weight", "lora_B"))}
    if config.get("enable_lora") or 3 in b_dimensions:
        raise ModelFault(
            f"{source}: is an enable_lora adapter (MergedLinear of PEFT 0.2), which no later PEFT can load: train it "
            "again from its data and its base (finetune.py, finetune_bloom.py); what they save has the form of today"
        )


def read(folder: Path) -> Adapter:
    """The adapter in `folder`, its tensors mapped. Raises ModelFault."""
    return Adapter(folder, weights.read_config(folder), weights.read_weights(weights.adapter_file(folder)))
