"""All rules about arguments, collected into one error, before anything heavy is imported."""

import importlib.util
import itertools
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from utils import ranks
from utils.errors import ArgumentFault, EnvironmentFault
from utils.hub import adapter_names, is_hub_name
from utils.prompter import template_problem
from utils.rows import data_names
from utils.values import check_port, shares, stop_texts, systems, users

JUDGE_MODES = ("robust", "faithful")
MOST_RATERS = 20
LEAST_TEMPERATURE = 0.01  # below, the logits overflow
LOOPBACK = ("127.0.0.1", "localhost", "::1")
DTYPES = ("auto", "float32", "bfloat16", "float16")
WANDB = {"watch": ("false", "gradients", "parameters", "all"), "log_model": ("false", "true", "end", "checkpoint")}


def training(flags: Mapping[str, Any], given: frozenset[str]) -> None:
    """Check the flags of finetune.py, `given` being those of the command line.

    Raises ArgumentFault listing every problem, EnvironmentFault for a logger that is asked for and not installed.
    """
    problems = [
        *_positive(flags, "batch_size", "micro_batch_size", "num_epochs", "cutoff_len", "lora_r", "lora_alpha"),
        *_batches(flags["batch_size"], flags["micro_batch_size"], ranks.world_size()),
        *_rates(flags["learning_rate"], flags["lora_dropout"], flags["neftune_noise_alpha"]),
        *_base(flags["base_model"]),
        *_data(flags["data_path"], flags["data_mix"]),
        *_precision(flags),
        *(f"accelerate's configuration has {asked}; it must be 'no'" for asked in ranks.untaken()),
        *_seed(flags["seed"]),
        *_template("prompt_template_name", flags["prompt_template_name"]),
        *_output(flags, "base_model", "resume_from_checkpoint", "data_path"),
    ]
    if flags["last_turn_only"] and flags["train_on_inputs"]:
        problems.append("--last_turn_only: has no effect while prompts are learned too (add --train_on_inputs False)")
    if flags["val_set_size"] < 0:
        problems.append(f"--val_set_size: {flags['val_set_size']} is not 0 or above")
    if not flags["lora_target_modules"]:
        problems.append("--lora_target_modules: the list is empty, must name layers such as [q_proj,v_proj]")
    if flags["resume_from_checkpoint"]:
        problems += _parent(flags["resume_from_checkpoint"])
    elif "resume_from_checkpoint" in given:
        problems.append("--resume_from_checkpoint: is empty; leave it out to start from the base model")
    problems += _earlier(flags)
    problems += [
        f'--wandb_{name}: "{value}" is not one of {", ".join(known)}'
        for name, known in WANDB.items()
        if (value := flags[f"wandb_{name}"]) not in ("", *known)
    ]
    _refuse(problems)
    _loggers(flags)


def answering(flags: Mapping[str, Any]) -> None:
    """Check the flags of generate.py. Raises ArgumentFault listing every problem, EnvironmentFault for a taken port."""
    problems = [
        *_base(flags["base_model"]),
        *_positive(flags, "num_beams", "max_new_tokens", "batch_tokens", "top_k"),
        *_precision(flags),
        *_seed(flags["seed"]),
        *(_template("prompt_template", flags["prompt_template"]) if flags["prompt_template"] else []),
        *(problem for name in adapter_names(flags["lora_weights"]) for problem in _model("lora_weights", name)),
        *_sampling(flags),
    ]
    if flags["gpu_id"] and not flags["gpu_id"].isdigit():
        problems.append(f'--gpu_id: "{flags["gpu_id"]}" is not a number')
    if flags["gpu_id"] and ranks.world_size() > 1:
        problems.append("--gpu_id: a launcher gives each process a GPU of its own (CUDA_VISIBLE_DEVICES chooses them)")
    problems += _page(flags) if flags["is_ui"] else _batch(flags)
    _refuse(problems)
    if flags["is_ui"] and flags["server_port"]:
        check_port(flags["server_name"], flags["server_port"])


def merging(flags: Mapping[str, Any]) -> None:
    """Check the flags of merge_lora.py. Raises ArgumentFault listing every problem."""
    adapters = adapter_names(flags["lora_model"])
    named = {**flags, **{f"lora_model {name}": name for name in adapters}}
    problems = [
        *_base(flags["base_model"]),
        *_output(named, "base_model", *(f"lora_model {name}" for name in adapters)),
        *(problem for name in adapters for problem in _model("lora_model", name)),
    ]
    if not adapters:
        problems.append("--lora_model is missing: a folder or a Hub name (several, in order: A,B)")
    problems += _dtype(flags["dtype"])
    _refuse(problems)


def judging(flags: Mapping[str, Any]) -> dict[str, str]:
    """Check the flags of judge.py, those that a command has. Returns {system: answers file} of --answers.

    Raises ArgumentFault listing every problem.
    """
    answers, problems = systems(flags["answers"]) if "answers" in flags else ({}, [])
    problems += _output(flags)
    problems += _positive(flags, *(name for name in ("concurrency", "raters") if name in flags))
    problems += _seed(flags["seed"]) if "seed" in flags else []
    if "test_data" in flags and not os.path.exists(flags["test_data"]):
        problems.append(f"--test_data: {flags['test_data']} does not exist")
    problems += _judge(flags) if "base_url" in flags else []
    if flags.get("raters", 0) > MOST_RATERS:
        problems.append(f"--raters: {flags['raters']} is more than {MOST_RATERS}")
    if "sheets" in flags:
        problems += [] if flags["sheets"] else ["the filled sheets are missing: collect sheet-1.csv sheet-2.csv"]
        problems += [f"{path} is no file" for path in flags["sheets"] if not os.path.isfile(path)]
    _refuse(problems)
    return answers


def rows_and_validation(rows: int, val_set_size: int) -> None:
    """Check what is known once the rows are counted. Raises ArgumentFault."""
    if rows - val_set_size < 2:
        most = f"at most {rows - 2}" if rows > 1 else "--data_path needs 2 rows or more"
        raise ArgumentFault(f"--val_set_size: {val_set_size} of {rows} rows leaves fewer than 2 to train on ({most})")


def nearest_divisor(number: int, near: int) -> int:
    """The divisor of `number` closest to `near`, the smaller of two."""
    around = (near + sign * distance for distance in itertools.count() for sign in (-1, 1))
    return next(candidate for candidate in around if candidate > 0 and number % candidate == 0)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ArgumentFault("; ".join(problems))


def _positive(flags: Mapping[str, Any], *names: str) -> list[str]:
    return [f"--{name}: {flags[name]} is not above 0" for name in names if flags[name] <= 0]


def _batches(batch: int, micro: int, processes: int) -> list[str]:
    if batch <= 0 or micro <= 0:
        return []
    of = f" over {processes} processes" if processes > 1 else ""
    if batch % processes:
        nearest = max(1, round(batch / (micro * processes))) * micro * processes
        return [f"--batch_size: {batch} cannot be spread evenly{of} (nearest: {nearest})"]
    if micro > batch // processes:
        return [f"--micro_batch_size: {micro} is more than --batch_size {batch}{of}"]
    if batch // processes % micro:
        nearest = nearest_divisor(batch // processes, micro)
        return [f"--micro_batch_size: {micro} does not divide --batch_size {batch}{of} (nearest: {nearest})"]
    return []


def _rates(rate: float, dropout: float, noise: float) -> list[str]:
    problems = []
    if not (math.isfinite(rate) and rate > 0):
        problems.append(f"--learning_rate: {rate} is not a number above 0")
    if not 0 <= dropout < 1:
        problems.append(f"--lora_dropout: {dropout} is not in [0, 1)")
    if not 0 <= noise < math.inf:
        problems.append(f"--neftune_noise_alpha: {noise} is not a number of 0 or above")
    return problems


def _seed(seed: int) -> list[str]:
    return [] if 0 <= seed < 2**32 else [f"--seed: {seed} is not between 0 and {2**32 - 1}"]


def _base(name: str) -> list[str]:
    return _model("base_model", name) if name else ["--base_model is missing: a model folder or a Hub name"]


def _model(flag: str, name: str) -> list[str]:
    if os.path.isfile(name):
        return [f"--{flag}: {name} is a file, must be a folder"]
    return [] if os.path.exists(name) or is_hub_name(name) else [f"--{flag}: {name} does not exist"]


def _parent(name: str) -> list[str]:
    """A folder here; a name of the Hub is a mistyped path more often than not, and the chain behind it is not known."""
    if os.path.isdir(name):
        return []
    what = "is a file, must be a folder" if os.path.isfile(name) else "does not exist"
    return [f"--resume_from_checkpoint: {name} {what}"]


def _data(data_path: str, data_mix: tuple[str, ...]) -> list[str]:
    if not data_path:
        return ["--data_path is missing: a .json or .jsonl file, or a Hub name"]
    names = data_names(data_path)
    problems = [problem for name in names for problem in _data_name(name)]
    problems += [f"--data_path: {name} is named twice" for name in {name for name in names if names.count(name) > 1}]
    return problems + _said(shares, data_mix, len(names))


def _data_name(name: str) -> list[str]:
    if not name:
        return ["--data_path: a name is missing beside a comma"]
    if os.path.exists(name):
        is_one = os.path.isfile(name) and Path(name).suffix in (".json", ".jsonl")
        return [] if is_one else [f"--data_path: {name} is neither a .json nor a .jsonl file"]
    return [] if is_hub_name(name) else [f"--data_path: {name} does not exist"]


def _precision(flags: Mapping[str, Any]) -> list[str]:
    if ranks.shards_base() and flags["load_8bit"]:
        return ["--load_8bit: 8-bit weights cannot be sharded over processes (--load_4bit True --load_8bit False)"]
    problems = _dtype(flags["dtype"])
    if flags["load_8bit"] and flags["load_4bit"]:
        problems.append("--load_8bit and --load_4bit are both True (for 4 bits add --load_8bit False)")
    return problems


def _dtype(name: str) -> list[str]:
    return [] if name in DTYPES else [f'--dtype: "{name}" is not one of {", ".join(DTYPES)}']


def _template(flag: str, name: str) -> list[str]:
    problem = template_problem(name)
    return [f"--{flag}: {problem}"] if problem else []


def _output(flags: Mapping[str, Any], *inputs: str) -> list[str]:
    output = flags["output_dir"]
    if not output:
        return ["--output_dir is missing"]
    here = Path(output).resolve()
    if files := [path for path in (here, *here.parents) if os.path.isfile(path)]:
        return [f"--output_dir: {output}: {files[0]} is a file, must be a folder"]
    same = [
        name for name in inputs if flags[name] and os.path.exists(flags[name]) and Path(flags[name]).resolve() == here
    ]
    problems = [f"--output_dir: {output} is also --{name}" for name in same]
    return problems + (_moved_with(here, flags, *inputs) if flags.get("overwrite") and not same else [])


def _moved_with(output: Path, flags: Mapping[str, Any], *inputs: str) -> list[str]:
    """What --overwrite would move away together with the old output, and the run still needs."""
    named = [(f"--{name}", path) for name in inputs for path in data_names(flags[name] or "")]
    inside = [
        f"{what} ({path})"
        for what, path in [*named, ("the current folder", ".")]
        if path and os.path.exists(path) and Path(path).resolve().is_relative_to(output)
    ]
    return [f"--overwrite: would move {', '.join(inside)} away with --output_dir"] if inside else []


def _sampling(flags: Mapping[str, Any]) -> list[str]:
    problems = []
    temperature = flags["temperature"]
    if not (math.isfinite(temperature) and (temperature == 0 or temperature >= LEAST_TEMPERATURE)):
        problems.append(f"--temperature: {temperature} is not 0 (greedy) or {LEAST_TEMPERATURE} and above")
    elif temperature and flags["num_beams"] > 1:
        problems.append(f"--temperature: {temperature} draws, --num_beams {flags['num_beams']} search: choose one")
    if not 0 < flags["top_p"] <= 1:
        problems.append(f"--top_p: {flags['top_p']} is not in (0, 1]")
    return problems + _said(stop_texts, flags["stop"])


def _said(read: Callable[..., object], *values: object) -> list[str]:
    try:
        read(*values)
    except ArgumentFault as fault:
        return [str(fault)]
    return []


def _page(flags: Mapping[str, Any]) -> list[str]:
    if ranks.world_size() > 1:
        return ["--is_ui: the page is one process; start it with python, without a launcher"]
    problems = _said(users, flags["auth"])
    if not 0 <= flags["server_port"] <= 65535:
        problems.append(f"--server_port: {flags['server_port']} is no port (0 to 65535)")
    if flags["server_name"] not in LOOPBACK and not flags["auth"]:
        problems.append(
            f"--server_name: {flags['server_name']} opens the page to the network: add --auth USER:PASSWORD (or a "
            "file), or serve 127.0.0.1 and forward the port with ssh -L"
        )
    if flags["share_gradio"] and not flags["auth"]:
        problems.append("--share_gradio: opens the page to everybody who has its address: add --auth USER:PASSWORD")
    if flags["test_input_path"]:
        problems.append("--test_input_path is for batch answers: add --is_ui False")
    return problems


def _batch(flags: Mapping[str, Any]) -> list[str]:
    path = flags["test_input_path"]
    if not path:
        return ["--test_input_path is missing: the prompts to answer, a .json or .jsonl file, or a folder of them"]
    problems = [] if os.path.exists(path) else [f"--test_input_path: {path} does not exist"]
    output = flags["output_path"]
    if len(adapter_names(flags["lora_weights"])) > 1:
        problems.append(
            f"--lora_weights: {flags['lora_weights']}: one adapter answers a file; several are for the page"
        )
    if output and os.path.isdir(output):
        problems.append(f"--output_path: {output} is a folder, must be a file such as test.json")
    if output and Path(path).resolve() in (Path(output).resolve(), Path(output).resolve().parent):
        problems.append(f"--output_path: {output} is also --test_input_path, or would be read as part of it")
    return problems


def _earlier(flags: Mapping[str, Any]) -> list[str]:
    problems = []
    if not 0 <= flags["replay"] <= 1:
        problems.append(f"--replay: {flags['replay']} is not a share in [0, 1]")
    if not flags["max_forget"] >= 0:
        problems.append(f"--max_forget: {flags['max_forget']} is not 0 or above")
    asked = {"replay": flags["replay"], "max_forget": 0 <= flags["max_forget"] < math.inf}
    if not flags["resume_from_checkpoint"]:
        problems += [
            f"--{name}: there are no earlier stages without --resume_from_checkpoint" for name in asked if asked[name]
        ]
    return problems


def _loggers(flags: Mapping[str, Any]) -> None:
    asked = {"wandb": flags["wandb_project"], "tensorboard": flags["tensorboard"]}
    for package, wanted in asked.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise EnvironmentFault(f"{package} is asked for and not installed: pip install {package}")


def _judge(flags: Mapping[str, Any]) -> list[str]:
    problems = [] if flags["model"] else ["--model is missing: the judge's model, such as gpt-4"]
    url = urlsplit(flags["base_url"])
    if url.scheme not in ("http", "https") or not url.hostname:
        problems.append(f"--base_url: {flags['base_url']} is no http:// or https:// address")
    elif url.username or url.password:
        problems.append("--base_url: holds a user or password; the key comes from OPENAI_API_KEY only")
    if flags["mode"] not in JUDGE_MODES:
        problems.append(f'--mode: "{flags["mode"]}" is not one of {", ".join(JUDGE_MODES)}')
    if not flags["temperature"] <= 2:
        problems.append(f"--temperature: {flags['temperature']} is not between 0 and 2 (below 0: the server's own)")
    if not (math.isfinite(flags["timeout"]) and flags["timeout"] > 0):
        problems.append(f"--timeout: {flags['timeout']} is no number of seconds above 0")
    return problems
