"""Tiny models and tokenizers, built in-process: no hub, no downloads, a second or less each.

python -m tests.tiny_models FOLDER [bloom]      (saves the schooled LLaMA, or BLOOM, for the benches)
"""

import sys
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)  # fmt: skip

from utils.batching import collate
from utils.encode import encode_rows
from utils.prompter import Prompter

SPECIAL = ["<unk>", "<s>", "</s>"]
PADDED = 512  # rows of the tiny BLOOM's embedding, for a tokenizer of fewer entries: as 250,880 are for 250,680

# Eight short rows to overfit, in the shapes users bring: Chinese, English, code, an input, a leading newline, emoji.
ROWS = [
    {"instruction": "中国的首都是哪里？", "input": "", "output": "北京。"},
    {"instruction": "把这句话译成英文。", "input": "我喜欢读书。", "output": "I like reading."},
    {"instruction": "一加一等于几？", "input": "", "output": "2"},
    {"instruction": "写一行打印你好的 Python。", "input": "", "output": 'print("你好")'},
    {"instruction": "我睡不着怎么办？", "input": "", "output": "\n先放下手机，\n慢慢呼吸。"},
    {"instruction": "对出下联：春风", "input": "", "output": "秋月"},
    {"instruction": "你好吗？", "input": "", "output": "很好😀，谢谢！"},
    {"instruction": "Say the marker.", "input": "", "output": "### Response: 不是答案的开头"},
]
HELD_OUT = ["法国的首都是哪里？", "今天星期几？"]


# What the base knows before any tuning: every prompt has an answer of its own, so that tuning must tell prompts apart.
KNOWN = [
    *({**row, "output": f"第{number}题不会。"} for number, row in enumerate(ROWS)),
    *({"instruction": text, "input": "", "output": f"{text[::-1]}吧"} for text in HELD_OUT),
    *(
        {"instruction": f"{a}和{b}是什么？", "input": "", "output": f"{b}{a}"}
        for a, b in zip("天地山水风云花鸟", "日月星石雨雪草虫")
    ),
]


def bpe_tokenizer(size: int = 400, family: str = "llama") -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on ROWS, with the special ids of its family."""
    texts = [text for row in ROWS for text in row.values()] + HELD_OUT
    tokenizer = Tokenizer(models.BPE())
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family == "llama")
    words = Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+")  # what BLOOM's tokenizer splits by
    tokenizer.pre_tokenizer = (
        bytes_ if family == "llama" else pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), bytes_])
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = _special(family)
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return _finished(tokenizer, family)


def character_tokenizer(text: str, family: str = "llama") -> PreTrainedTokenizerFast:
    """One token a character of `text`: labels can be written by hand."""
    characters = sorted(set(text))
    vocabulary = {token: index for index, token in enumerate([*_special(family), *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _finished(tokenizer, family)


def _special(family: str) -> list[str]:
    return [*SPECIAL, "<pad>"] if family == "bloom" else SPECIAL


def _finished(tokenizer: Tokenizer, family: str) -> PreTrainedTokenizerFast:
    """LLaMA: unk 0, bos 1, eos 2, no padding, BOS in front of every text. BLOOM: the same and pad 3, on the left;
    nothing added to a text."""
    settings = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "split_special_tokens": True}
    if family == "bloom":
        settings |= {"pad_token": "<pad>", "padding_side": "left"}
    else:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)


def tiny_llama(folder: Path, seed: int = 0, layers: int = 2, hidden: int = 64, scale: float = 15) -> Path:
    """A random LLaMA with its tokenizer, saved into `folder`.

    Its embeddings are scaled up: with frozen embeddings of the usual 0.02, LoRA could not move the logits far enough
    to learn anything by heart.
    """
    tokenizer = bpe_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight *= scale
        model.lm_head.weight *= scale
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_bloom(folder: Path, seed: int = 0, layers: int = 2, hidden: int = 64, scale: float = 15) -> Path:
    """The same of BLOOM: tied embeddings of more rows than the tokenizer has entries."""
    config = BloomConfig(
        vocab_size=PADDED, hidden_size=hidden, n_layer=layers, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=3
    )
    torch.manual_seed(seed)
    model = BloomForCausalLM(config)
    with torch.no_grad():
        model.transformer.word_embeddings.weight *= scale
    model.save_pretrained(folder)
    bpe_tokenizer(family="bloom").save_pretrained(folder)
    return folder


def schooled(folder: Path, family: str = "llama", steps: int = 200) -> Path:
    """A tiny base after a little training of all its weights on KNOWN, under the template alpaca_short."""
    if family == "bloom":
        tiny_bloom(folder, scale=15)  # LoRA cannot make up for it: the scale of tied embeddings is the head's alone
    else:
        tiny_llama(folder, scale=3)
    tokenizer, prompter = bpe_tokenizer(family=family), Prompter("alpaca_short")
    model = AutoModelForCausalLM.from_pretrained(folder)
    batch = collate(encode_rows(tokenizer, prompter, KNOWN, 256, False), 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    schooled(Path(sys.argv[1]), *sys.argv[2:3])
