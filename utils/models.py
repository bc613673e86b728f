"""Tokenizer, base model in full precision or 8/4 bits, LoRA attached. The only room that knows bitsandbytes."""

import sys
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)  # fmt: skip
from transformers.utils import logging as transformers_logging

from utils import fast, ranks, runtime, sharding, vocabulary, weights
from utils.errors import ArgumentFault, ModelFault, first_line

LORA_FLAGS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "use_rslora")  # of add_lora

transformers_logging.set_verbosity_error()  # its load report is replaced by the checks below


def load_config(folder: Path) -> PreTrainedConfig:
    """The base's configuration. Raises ModelFault where it is missing, unreadable, needs code of its own, or is not of
    a model that continues a text: one that sees the words behind, too, would learn to copy them.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelFault(f"{folder}: no usable config.json: {first_line(error)}") from None
    is_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder
    if not is_causal or (type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)):
        raise ModelFault(f"{folder}: {config.model_type} is no causal language model")
    config.dtype = config.dtype or _stored_dtype(folder)
    return config


def _stored_dtype(folder: Path) -> torch.dtype | None:
    """That of the first weight, for a config.json that does not say it (BLOOM's of 2022): float32 in place of float16
    would take twice the memory. None where no weights can be read: who loads them says so."""
    try:
        return next((tensor.dtype for _, tensor in weights.read_base(folder) if tensor.is_floating_point()), None)
    except ModelFault:
        return None


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer with EOS and a padding id set; text such as "</s>" in data is text, never a special token.

    LLaMA has no padding token: id 0 (unk) is used, as in Alpaca-LoRA; padding is masked, so any id serves. BLOOM's is
    <pad>, id 3. What LLaMA conversions of early 2023 have lost is put back.
    Raises ModelFault for one that cannot be read, or has entries that the base's embedding has no row for.
    """
    folder = Path(folder)  # a record's paths are text
    lost = vocabulary.early_llama(folder)
    kind = LlamaTokenizer if lost.pop("tokenizer_class", None) else AutoTokenizer
    try:
        tokenizer = kind.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, split_special_tokens=True, **lost
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelFault(f"{folder}: no usable tokenizer: {first_line(error)}") from None
    if tokenizer.eos_token_id is None:
        raise ModelFault(f"{folder}: the tokenizer has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        is_blooms = tokenizer.convert_ids_to_tokens([1, 2, 3]) == ["<s>", "</s>", "<pad>"]
        tokenizer.pad_token = "<pad>" if is_blooms else tokenizer.unk_token or tokenizer.eos_token
    if (folder / "config.json").is_file():  # an adapter's folder may bring a tokenizer alone
        rows = getattr(load_config(folder).get_text_config(), "vocab_size", len(tokenizer))
        if len(tokenizer) > rows:
            raise ModelFault(f"{folder}: the tokenizer has {len(tokenizer)} entries, the embedding {rows} rows")
    return tokenizer


def load_base(folder: Path, load_8bit: bool, load_4bit: bool, dtype: str, device: torch.device) -> PreTrainedModel:
    """The base model for training or answers, every weight accounted for.

    Unquantised it keeps its dtype (see runtime.compute_dtype). Raises ModelFault for missing, unexpected or unreadable
    weights: transformers itself would fill them with random numbers, leave them out, and go on.
    """
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    config = load_config(folder)
    stored = config.dtype or torch.float32
    quantisation = None
    if load_8bit:
        quantisation = BitsAndBytesConfig(load_in_8bit=True)
    elif load_4bit:
        compute = torch.bfloat16 if device.type == "cpu" or torch.cuda.is_bf16_supported() else torch.float16
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            bnb_4bit_quant_storage=sharding.STORAGE if ranks.shards_base() else torch.uint8,
        )
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=runtime.compute_dtype(dtype, stored, device),
            quantization_config=quantisation,
            device_map={"": device},
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelFault(f"{folder}: the base model does not load: {first_line(error)}") from None
    except Exception as error:  # safetensors and pickle raise classes of their own
        if type(error).__name__ not in ("SafetensorError", "UnpicklingError", "OutOfMemoryError"):
            raise
        raise ModelFault(f"{folder}: the base model does not load: {first_line(error)}") from None
    for what in ("missing_keys", "mismatched_keys"):
        if report[what]:
            names = sorted(map(str, report[what]))
            raise ModelFault(f"{folder}: {what.replace('_', ' ')} in the base model: {_some(names)}")
    # Beside weights, old checkpoints hold buffers that nobody needs today (masks, rotary frequencies).
    if unused := sorted(name for name in report["unexpected_keys"] if name.endswith(".weight")):
        raise ModelFault(f"{folder}: config.json has no place for weights of the base model: {_some(unused)}")
    return model


def prepare_for_training(model: PreTrainedModel, *, recompute: bool = False) -> PreTrainedModel:
    """A base made ready for gradients: a quantised one has its norms in float32; with `recompute` each layer keeps
    nothing but its input, and computes its activations again, dropout included, when the backward pass needs them.

    On a CPU, bitsandbytes repacks 4-bit weights at the first evaluation into a form without gradients; training would
    go on and learn nothing below. That form is switched off.
    """
    if getattr(model, "is_quantized", False):
        for layer in model.modules():
            if isinstance(layer, Linear4bit):
                layer.support_avx512bf16_for_cpu = False
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def empty_base(folder: Path) -> PreTrainedModel:
    """The base as its configuration draws it: all names and shapes, no weights, no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(folder), trust_remote_code=False)


def add_lora(
    model: PreTrainedModel,
    lora_r: int,
    lora_alpha: int,
    lora_dropout: float,
    lora_target_modules: tuple[str, ...],
    is_fast: bool = False,
    use_rslora: bool = False,
) -> PeftModel:
    """The model with fresh float32 LoRA weights on the linear layers whose names end in one of lora_target_modules.

    is_fast: with layers of the fast path. use_rslora: scaled by alpha / sqrt(r), not alpha / r. Raises ArgumentFault
    for a target that no layer has, naming those that exist.
    """
    head = model.get_output_embeddings()
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head]
    known = sorted({name.rsplit(".", 1)[-1] for name in linear})
    if not known:
        raise ModelFault(f"{model.config.model_type} has no linear layers that LoRA could be put on")
    if unknown := [target for target in lora_target_modules if target not in known]:
        raise ArgumentFault(
            f"--lora_target_modules: {', '.join(unknown)} not in this model (it has {', '.join(known)})"
        )
    config = LoraConfig(
        r=lora_r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=list(lora_target_modules),
        use_rslora=use_rslora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    if is_fast:
        fast.register(config, model)
    return get_peft_model(model, config)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
