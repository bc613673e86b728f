"""The vocabulary of a merged model: which tokenizer belongs to it, and whether its size is the embedding's.

Sizes are read from the tokenizer's files themselves: a merge need not load transformers to know them.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from utils.errors import ModelFault
from utils.files import write_json
from utils.weights import read_object

VOCABULARIES = ("tokenizer.model", "tokenizer.json", "vocab.json")
ADDED = "added_tokens.json"
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", ADDED, "chat_template.jinja", "merges.txt")
EARLY = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}  # LLaMA's ids 0, 1 and 2
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of the tokenizer in `folder`; none where no vocabulary is there."""
    if not any((folder / name).is_file() for name in VOCABULARIES):
        return []
    return [folder / name for name in (*VOCABULARIES, *BESIDE) if (folder / name).is_file()]


def copy_tokenizer(folder: Path, target: Path) -> None:
    """The tokenizer of `folder` into `target`; of a LLaMA conversion of early 2023 with what it has lost."""
    for path in tokenizer_files(folder):
        shutil.copy(path, target)
    if right := early_llama(folder):
        settings, beside = target / BESIDE[0], target / BESIDE[1]
        write_json(settings, {**read_object(settings), **right})
        if beside.is_file():
            named = read_object(beside)
            write_json(beside, {**named, **{key: value for key, value in right.items() if key in named}})


def tokenizer_size(folder: Path) -> int:
    """Entries of the tokenizer in `folder`, added ones and special ones included: its highest id + 1.

    Raises ModelFault for a file that cannot be read, and where tokenizer.model and tokenizer.json differ in size.
    """
    sizes = {name: _size(folder, name) for name in VOCABULARIES if (folder / name).is_file()}
    if len(set(sizes.values())) > 1:
        both = " and ".join(f"{name} has {size} entries" for name, size in sizes.items())
        raise ModelFault(f"{folder}: {both}: they are not one tokenizer (remove the one that does not belong here)")
    return next(iter(sizes.values()))


def _size(folder: Path, name: str) -> int:
    """Special tokens that only the configuration names get the next free ids, as transformers gives them."""
    ids = _pieces(folder / name)
    if (folder / ADDED).is_file():
        ids |= _pieces(folder / ADDED)
    named: list[str] = []
    for beside in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = read_object(folder / beside) if (folder / beside).is_file() else {}
        try:
            added = settings.get("added_tokens_decoder") or {}
            ids |= {token["content"]: int(number) for number, token in added.items()}
            named += _special_tokens(settings)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ModelFault(f"{folder / beside} cannot be read: its tokens are not what they must be") from None
    return max(ids.values(), default=-1) + 1 + len(set(named) - ids.keys())


def _pieces(path: Path) -> dict[str, int]:
    if path.suffix == ".model":
        from sentencepiece import SentencePieceProcessor

        try:
            model = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise ModelFault(f"{path} cannot be read: {(str(error).splitlines() or ['broken'])[0]}") from None
        return {model.id_to_piece(number): number for number in range(model.get_piece_size())}
    content = read_object(path)
    try:
        is_whole = path.name == "tokenizer.json"
        pieces = content["model"]["vocab"] if is_whole else content
        added = (content.get("added_tokens") or []) if is_whole else []
        if isinstance(pieces, list):  # a Unigram model: [piece, score] in the order of their ids
            pieces = {piece: number for number, (piece, _) in enumerate(pieces)}
        pieces = {piece: int(number) for piece, number in pieces.items()}
        return pieces | {token["content"]: int(token["id"]) for token in added}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ModelFault(f"{path} cannot be read: no vocabulary in it") from None


def _special_tokens(settings: dict) -> Iterator[str]:
    """Conversions of early 2023 carry empty strings for BOS and EOS: they are no tokens."""
    listed = settings.get("additional_special_tokens") or []
    for token in [*(settings.get(name) for name in SPECIAL), *listed]:
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text:
            yield text


def early_llama(folder: Path) -> dict:
    """What a LLaMA conversion of early 2023 must say in tokenizer_config.json instead of what it says; {} for others.

    Its names of BOS, EOS and UNK are empty, its class has another name since, and BOS was in front without a word:
    transformers would not load it, or as some other tokenizer, without BOS and without the blank in front.
    """
    path = folder / "tokenizer_config.json"
    settings = read_object(path) if path.is_file() else {}
    right = {name: token for name, token in EARLY.items() if settings.get(name) == ""}
    if settings.get("tokenizer_class") == "LLaMATokenizer":
        right["tokenizer_class"] = "LlamaTokenizer"
    if not right or not (files := tokenizer_files(folder)):
        return {}
    right["add_bos_token"] = settings.get("add_bos_token", True)
    ids = _pieces(files[0])
    return right if [ids.get(token) for token in EARLY.values()] == [0, 1, 2] else {}


def choose_tokenizer(base: Path, adapters: list[Path], rows: int | None, base_rows: int | None) -> Path | None:
    """The folder whose tokenizer belongs to the merged model: the last adapter's that brings one, else the base's.

    rows: of the merged embedding; base_rows: of the base's (None where it has none). A grown vocabulary has as many
    entries as rows. One that did not grow may be padded as the base's is (BLOOM: 250880 rows for 250680 entries).
    Raises ModelFault with both numbers where they disagree. None where nobody brings a tokenizer.
    """
    brought = [folder for folder in adapters if tokenizer_files(folder)]
    own = tokenizer_size(base) if tokenizer_files(base) else None
    if not brought and own is None:
        if rows != base_rows:
            raise ModelFault(f"the vocabulary grows from {base_rows} to {rows}, and nobody brings a tokenizer for it")
        return None
    chosen = brought[-1] if brought else base
    entries = tokenizer_size(chosen)
    if rows is not None and not (rows if rows != base_rows else own or 0) <= entries <= rows:
        raise ModelFault(_disagreement(chosen, entries, rows, base_rows, own))
    return chosen


def _disagreement(chosen: Path, entries: int, rows: int, base_rows: int | None, own: int | None) -> str:
    sizes = f"the tokenizer of {chosen} has {entries} entries, the merged embedding {rows} rows"
    if rows == base_rows and own not in (None, entries):
        sizes += f" and the base model's tokenizer {own} entries"
    if abs(rows - entries) == 1:
        models = "Chinese-LLaMA (49953) and Chinese-Alpaca (49954, with [PAD]), which do not mix"
        why = f"weights of one model beside the tokenizer of another, as {models}"
    elif rows != base_rows:
        why = "not the tokenizer that the adapter was trained with (is it in the adapter's folder?)"
    elif entries > rows:
        why = "an adapter saved without its embed_tokens and lm_head, or the tokenizer of a larger one"
    else:
        why = "the tokenizer of another model"
    return f"{sizes}: probably {why}"
