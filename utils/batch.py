"""A file of prompts into test.json: sorted by length, answered in batches, written in the file's order."""

from pathlib import Path

from tqdm import tqdm

from utils.errors import DataFault, EnvironmentFault
from utils.files import write_json
from utils.generation import Assistant
from utils.rows import Row


def output_file(output_path: str, lora_weights: str, base_model: str) -> Path:
    """Where the answers go: output_path, else test.json in the adapter's folder, else (a Hub adapter, or none) in
    ./answers-<name>. Its folder is made. Raises EnvironmentFault where nothing can be written."""
    if output_path:
        path = Path(output_path)
    elif lora_weights and Path(lora_weights).is_dir():
        path = Path(lora_weights) / "test.json"
    else:
        name = (lora_weights or base_model).rstrip("/").replace("/", "--")
        path = Path(f"answers-{Path(name).name}") / "test.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / f".{path.name}.probe").touch()
        (path.parent / f".{path.name}.probe").unlink()
    except OSError as error:
        raise EnvironmentFault(f"{path.parent} is not writable: {error.strerror}") from None
    return path


def answer_all(rows: list[Row], assistant: Assistant, batch_size: int, source: str) -> list[Row]:
    """Each row with its "output", "finish_reason" and "tokens", in the rows' order.

    The longest prompts go first, so that a memory that is too small shows at once. Raises DataFault naming the prompts
    of `source` that leave no room for an answer.
    """
    prompts = [assistant.prompt_ids(row) for row in rows]
    _check_lengths(prompts, source, assistant.context)
    order = sorted(range(len(rows)), key=lambda index: -len(prompts[index]))
    done: dict[int, dict] = {}
    tokens = 0
    with tqdm(total=len(rows), desc="answering", unit="prompt", disable=None) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for index, answer in zip(batch, assistant.answers([prompts[index] for index in batch]), strict=True):
                done[index] = answer
                tokens += answer["tokens"]
            bar.update(len(batch))
            bar.set_postfix(tokens_per_s=f"{tokens / max(bar.format_dict['elapsed'], 1e-9):.0f}")
    return [{**row, **done[index]} for index, row in enumerate(rows)]


def _check_lengths(prompts: list[list[int]], source: str, context: int) -> None:
    long = [f"prompt {number} ({len(ids)} tokens)" for number, ids in enumerate(prompts, 1) if len(ids) >= context]
    if long:
        raise DataFault(f"{source}: longer than the model's context of {context} tokens: {', '.join(long[:5])}")


def write(path: Path, rows: list[Row]) -> None:
    """Write test.json whole, by rename, characters as they are."""
    write_json(path, rows)
    print(f"{len(rows)} answers in {path}")
