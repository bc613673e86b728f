"""Values of flags: what cannot be is refused with what can."""

import re
import socket
from pathlib import Path

import pytest
import tiny_models
from commands import MAIN, command, ends, refusal
from conftest import write_rows

import finetune
from utils import checks, values
from utils.errors import ArgumentFault

pytestmark = pytest.mark.usefixtures("nothing_starts")

# --- The values: (flag and value, what the message says) ---

PATHS = [
    ("--base_model=", "--base_model is missing: a model folder or a Hub name"),
    ("--base_model=/no/where", "--base_model: /no/where does not exist"),
    ("--base_model=./models/../none", "--base_model: ./models/../none does not exist"),
    ("--base_model=plain.txt", "--base_model: plain.txt is a file, must be a folder"),
]
OUTPUTS = [
    ("--output_dir=", "--output_dir is missing"),
    ("--output_dir=plain.txt", "/plain.txt is a file, must be a folder"),
    ("--output_dir=plain.txt/out", "/plain.txt is a file, must be a folder"),
    ("--output_dir=base", "--output_dir: base is also --base_model"),
    ("--output_dir=out/../base/", "--output_dir: out/../base/ is also --base_model"),
    ("--output_dir=link", "--output_dir: link is also --base_model"),
]
TRAINING = [
    *PATHS,
    *OUTPUTS,
    ("--data_path=", "--data_path is missing: a .json or .jsonl file, or a Hub name"),
    ("--data_path=none.json", "--data_path: none.json does not exist"),
    ("--data_path=a/none.jsonl", "--data_path: a/none.jsonl does not exist"),
    ("--data_path=plain.txt", "--data_path: plain.txt is neither a .json nor a .jsonl file"),
    ("--data_path=folder.json", "--data_path: folder.json is neither a .json nor a .jsonl file"),
    ("--data_path=base", "--data_path: base is neither a .json nor a .jsonl file"),
    ("--resume_from_checkpoint=../none", "--resume_from_checkpoint: ../none does not exist"),
    ("--resume_from_checkpoint=out", "--resume_from_checkpoint: out does not exist"),
    ("--resume_from_checkpoint=outptu/run-1", "--resume_from_checkpoint: outptu/run-1 does not exist"),
    ("--resume_from_checkpoint=rows.json", "--resume_from_checkpoint: rows.json is a file, must be a folder"),
    ("--output_dir=adapter --resume_from_checkpoint=adapter", "adapter is also --resume_from_checkpoint"),
    ("--output_dir=rows.json", "/rows.json is a file, must be a folder"),
    ("--batch_size=0", "--batch_size: 0 is not above 0"),
    ("--batch_size=-8", "--batch_size: -8 is not above 0"),
    ("--micro_batch_size=0", "--micro_batch_size: 0 is not above 0"),
    ("--num_epochs=0", "--num_epochs: 0 is not above 0"),
    ("--cutoff_len=-1", "--cutoff_len: -1 is not above 0"),
    ("--lora_r=0", "--lora_r: 0 is not above 0"),
    ("--lora_alpha=0", "--lora_alpha: 0 is not above 0"),
    ("--micro_batch_size=129", "--micro_batch_size: 129 is more than --batch_size 128"),
    ("--micro_batch_size=5", "--micro_batch_size: 5 does not divide --batch_size 128 (nearest: 4)"),
    ("--micro_batch_size=60", "--micro_batch_size: 60 does not divide --batch_size 128 (nearest: 64)"),
    ("--learning_rate=0", "--learning_rate: 0.0 is not a number above 0"),
    ("--learning_rate=-1e-4", "--learning_rate: -0.0001 is not a number above 0"),
    ("--learning_rate=nan", "--learning_rate: nan is not a number above 0"),
    ("--learning_rate=inf", "--learning_rate: inf is not a number above 0"),
    ("--lora_dropout=1", "--lora_dropout: 1.0 is not in [0, 1)"),
    ("--lora_dropout=-0.1", "--lora_dropout: -0.1 is not in [0, 1)"),
    ("--lora_dropout=nan", "--lora_dropout: nan is not in [0, 1)"),
    ("--neftune_noise_alpha=-1", "--neftune_noise_alpha: -1.0 is not a number of 0 or above"),
    ("--neftune_noise_alpha=nan", "--neftune_noise_alpha: nan is not a number of 0 or above"),
    ("--neftune_noise_alpha=inf", "--neftune_noise_alpha: inf is not a number of 0 or above"),
    ("--val_set_size=-1", "--val_set_size: -1 is not 0 or above"),
    ("--lora_target_modules=[]", "--lora_target_modules: the list is empty, must name layers such as [q_proj,v_proj]"),
    ("--replay=1.1 --resume_from_checkpoint=adapter", "--replay: 1.1 is not a share in [0, 1]"),
    ("--replay=nan --resume_from_checkpoint=adapter", "--replay: nan is not a share in [0, 1]"),
    ("--resume_from_checkpoint=", "--resume_from_checkpoint: is empty; leave it out to start from the base model"),
    ("--base_model=adapter/typo", "--base_model: adapter/typo does not exist"),
    ("--replay=0.1", "--replay: there are no earlier stages without --resume_from_checkpoint"),
    ("--max_forget=0.3", "--max_forget: there are no earlier stages without --resume_from_checkpoint"),
    (
        "--overwrite --output_dir=.",
        "--overwrite: would move --base_model (base), --data_path (rows.json), the current folder (.) away",
    ),
    ("--overwrite --output_dir=base", "--output_dir: base is also --base_model"),
    (
        "--overwrite --output_dir=..",
        "--overwrite: would move --base_model (base), --data_path (rows.json), the current folder (.) away",
    ),
    ("--max_forget=-0.1", "--max_forget: -0.1 is not 0 or above"),
    ("--max_forget=nan", "--max_forget: nan is not 0 or above"),
    ("--seed=-1", "--seed: -1 is not between 0 and 4294967295"),
    ("--seed=4294967296", "--seed: 4294967296 is not between 0 and 4294967295"),
    ("--dtype=float64", '--dtype: "float64" is not one of auto, float32, bfloat16, float16'),
    ("--wandb_watch=bogus", '--wandb_watch: "bogus" is not one of false, gradients, parameters, all'),
    ("--wandb_log_model=yes", '--wandb_log_model: "yes" is not one of false, true, end, checkpoint'),
    ("--load_4bit", "--load_8bit and --load_4bit are both True (for 4 bits add --load_8bit False)"),
]
ANSWERING = [
    *PATHS,
    ("--lora_weights=/no/where", "--lora_weights: /no/where does not exist"),
    ("--lora_weights=plain.txt", "--lora_weights: plain.txt is a file, must be a folder"),
    ("--num_beams=0", "--num_beams: 0 is not above 0"),
    ("--max_new_tokens=0", "--max_new_tokens: 0 is not above 0"),
    ("--batch_tokens=-1", "--batch_tokens: -1 is not above 0"),
    ("--top_k=0", "--top_k: 0 is not above 0"),
    ("--temperature=-0.1", "--temperature: -0.1 is not 0 (greedy) or 0.01 and above"),
    ("--temperature=nan", "--temperature: nan is not 0 (greedy) or 0.01 and above"),
    ("--temperature=1e-9", "--temperature: 1e-09 is not 0 (greedy) or 0.01 and above"),
    ("--temperature=0.7 --num_beams=4", "--temperature: 0.7 draws, --num_beams 4 search: choose one"),
    ("--stop=[", '--stop: [ is no JSON list of texts such as ["###", "\\n\\n"]'),
    ('--stop=["a",""]', '--stop: ["a",""] is no JSON list of texts'),
    ("--lora_weights=adapter,/no/where", "--lora_weights: /no/where does not exist"),
    ("--top_p=0", "--top_p: 0.0 is not in (0, 1]"),
    ("--top_p=1.1", "--top_p: 1.1 is not in (0, 1]"),
    ("--gpu_id=cuda:1", '--gpu_id: "cuda:1" is not a number'),
    ("--seed=-1", "--seed: -1 is not between 0 and 4294967295"),
    ("--load_8bit --load_4bit", "--load_8bit and --load_4bit are both True"),
]
PAGE = [
    ("--share_gradio", "--share_gradio: opens the page to everybody who has its address: add --auth USER:PASSWORD"),
    ("--auth=nobody", "--auth: the value is neither USER:PASSWORD nor a file with a line of it for each user"),
    ("--auth=:x", "--auth: the value is neither USER:PASSWORD"),
    (f"--auth={'x' * 300}:", "--auth: the value is neither USER:PASSWORD"),
    ("--auth=rows.json", "--auth: rows.json is neither USER:PASSWORD nor a file"),
    ("--auth=nobody --server_name=0.0.0.0", "--auth: the value is neither USER:PASSWORD"),
    ("--server_port=-1", "--server_port: -1 is no port (0 to 65535)"),
    ("--server_port=65536", "--server_port: 65536 is no port (0 to 65535)"),
    ("--server_port=http", '--server_port: "http" is not a whole number'),
    ("--server_name=0.0.0.0", "--server_name: 0.0.0.0 opens the page to the network: add --auth"),
    ("--server_name=::", "--server_name: :: opens the page to the network: add --auth USER:PASSWORD (or a file), or"),
    ("--server_name=192.168.1.7", "--server_name: 192.168.1.7 opens the page to the network: add --auth"),
    ("--server_name=my.host", "--server_name: my.host opens the page to the network: add --auth"),
    ("--server_name=localhost.evil.org", "--server_name: localhost.evil.org opens the page to the network"),
    ("--test_input_path=prompts.json", "--test_input_path is for batch answers: add --is_ui False"),
]
BATCH = [
    ("--test_input_path=", "--test_input_path is missing: the prompts to answer, a .json or .jsonl file, or a folder"),
    ("--test_input_path=none.json", "--test_input_path: none.json does not exist"),
    ("--output_path=prompts.json", "--output_path: prompts.json is also --test_input_path, or would be read as part"),
    ("--test_input_path=base --output_path=base/test.json", "base/test.json is also --test_input_path, or would be"),
    ("--lora_weights=adapter,lora", "--lora_weights: adapter,lora: one adapter answers a file; several are for the"),
    ("--output_path=adapter", "--output_path: adapter is a folder, must be a file such as test.json"),
]
MERGING = [
    *PATHS,
    *OUTPUTS,
    ("--lora_model=", "--lora_model is missing: a folder or a Hub name"),
    ("--lora_model=/no/where", "--lora_model: /no/where does not exist"),
    ("--output_dir=adapter", "--output_dir: adapter is also --lora_model"),
]
CASES = {"finetune.py": TRAINING, "generate.py": [*ANSWERING, *PAGE], "batch": BATCH, "merge_lora.py": MERGING}


@pytest.mark.parametrize("kind, flags, message", [(kind, *case) for kind, cases in CASES.items() for case in cases])
def test_a_value_that_cannot_be_is_refused_with_what_can(kind, flags, message, monkeypatch, capsys):
    Path("link").symlink_to("base")
    Path("folder.json").mkdir()
    script = "generate.py" if kind == "batch" else kind
    line = refusal(script, command(kind, *flags.split(" ")), monkeypatch, capsys)
    assert message in line
    assert "; --" not in line, "one mistake, one problem"


@pytest.mark.parametrize("name", ["alpacca", "../x", "../templates/alpaca", "alpaca.json", "/etc/passwd", "Alpaca"])
@pytest.mark.parametrize("script, flag", [("finetune.py", "prompt_template_name"), ("generate.py", "prompt_template")])
def test_an_unknown_template_lists_the_known(script, flag, name, monkeypatch, capsys):
    known = "known: alpaca, alpaca_legacy, alpaca_short, chinese_alpaca, vigogne"
    message = refusal(script, command(script, f"--{flag}={name}"), monkeypatch, capsys)
    assert message == f'--{flag}: "{name}" is not a template ({known})'


def test_a_text_in_the_place_of_a_path_does_not_exist(monkeypatch, capsys):
    """File systems refuse names above 255 bytes, 85 Chinese characters, with an error of their own."""
    text = "请介绍一下你自己。" * 20
    for kind, flag in (("batch", "test_input_path"), ("generate.py", "base_model"), ("generate.py", "lora_weights")):
        message = refusal("generate.py", command(kind, f"--{flag}={text}"), monkeypatch, capsys)
        assert message == f"--{flag}: {text} does not exist"


def test_a_value_of_two_lines_is_told_in_one(monkeypatch, capsys):
    message = refusal("finetune.py", command("finetune.py", "--data_path=a\nb.json"), monkeypatch, capsys)
    assert message == r"--data_path: a\nb.json does not exist"


def test_users_come_from_the_flag_or_from_a_file_and_stop_texts_from_a_text_or_a_list():
    Path("users").write_text("li:密码:1\n\n wang:2 \n", encoding="utf-8")
    assert values.users("users") == [("li", "密码:1"), ("wang", "2")]
    Path("bom").write_text("li:1\n", encoding="utf-8-sig")
    assert values.users("bom") == [("li", "1")]
    Path("gbk").write_bytes("李:1".encode("gbk"))
    with pytest.raises(ArgumentFault, match="--auth: gbk is not UTF-8"):
        values.users("gbk")
    assert values.users("li:a:b") == [("li", "a:b")] and values.users("") == []
    assert values.stop_texts("### 指令") == ("### 指令",) and values.stop_texts("") == ()
    assert values.stop_texts('["\\n\\n", "###"]') == ("\n\n", "###")


def test_a_port_that_is_taken_is_an_environment_fault(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        argv = command("generate.py", f"--server_port={port}")
        code, out, line = ends(MAIN["generate.py"], argv, monkeypatch, capsys, "generate.py")
    assert (code, out) == (5, "")
    assert line == f"generate.py: error: --server_port: {port} of 127.0.0.1 cannot be had: Address already in use\n"


def test_a_server_name_that_is_no_name_is_an_environment_fault(monkeypatch, capsys):
    argv = command("generate.py", "--server_name=nowhere.invalid", "--server_port=1", "--auth=li:1")
    code, _, line = ends(MAIN["generate.py"], argv, monkeypatch, capsys, "generate.py")
    assert code == 5 and line.endswith("--server_port: 1 of nowhere.invalid cannot be had: no such name\n")


@pytest.mark.parametrize("package, flag", [("wandb", "--wandb_project=p"), ("tensorboard", "--tensorboard")])
def test_a_logger_that_is_not_installed_is_an_environment_fault(package, flag, monkeypatch, capsys):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    argv = command("finetune.py", flag)
    assert ends(finetune.train, argv, monkeypatch, capsys, "finetune.py") == (
        5,
        "",
        f"finetune.py: error: {package} is asked for and not installed: pip install {package}\n",
    )


@pytest.mark.parametrize("number, near, expected", [(128, 5, 4), (128, 6, 4), (12, 5, 4), (7, 5, 7), (100000007, 8, 1)])
def test_the_nearest_divisor(number, near, expected):
    assert checks.nearest_divisor(number, near) == expected


# --- What needs the rows or the model's configuration, but not its weights ---


def tiny_command(base: Path, *flags: str, rows: int = 8) -> list[str]:
    rows = write_rows(Path("counted.json"), tiny_models.ROWS[:rows])
    return command("finetune.py", f"--base_model={base}", f"--data_path={rows}", "--load_8bit=False", *flags)


@pytest.mark.parametrize(
    "rows, size, most",
    [(8, 8, "at most 6"), (8, 2000, "at most 6"), (8, 7, "at most 6"), (1, 0, "--data_path needs 2 rows or more")],
)
def test_a_validation_set_that_leaves_fewer_than_two_rows(rows, size, most, base, monkeypatch, capsys):
    argv = tiny_command(base, f"--val_set_size={size}", rows=rows)
    message = refusal("finetune.py", argv, monkeypatch, capsys)
    assert message == f"--val_set_size: {size} of {rows} rows leaves fewer than 2 to train on ({most})"


@pytest.mark.parametrize("rows, size", [(8, 6), (8, 0), (2, 0)])
def test_two_rows_to_train_on_are_enough(rows, size):
    checks.rows_and_validation(rows, size)


@pytest.mark.parametrize(
    "targets, unknown", [("[q_proj,query]", "query"), ("wq,v_proj,wk", "wq, wk"), ("lm_head", "lm_head")]
)
def test_an_unknown_target_module_lists_the_known(targets, unknown, base, monkeypatch, capsys):
    argv = tiny_command(base, "--val_set_size=2", f"--lora_target_modules={targets}")
    known = "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    expected = f"--lora_target_modules: {unknown} not in this model (it has {known})"
    assert refusal("finetune.py", argv, monkeypatch, capsys) == expected


@pytest.mark.parametrize(
    "kind, flags, code, named",
    [
        ("finetune.py", "--base_model={base} --data_path=rows.json", 3, "rows.json: no rows"),
        ("finetune.py", "--data_path=counted.json", 4, "base: no model here"),
        ("finetune.py", "--base_model={base} --resume_from_checkpoint=adapter", 4, "adapter: no adapter here"),
        ("batch", "", 3, "prompts.json: no prompts"),
        ("batch", "--test_input_path=lora", 3, "lora: no prompts here"),
        ("merge_lora.py", "", 4, "(base: no model|adapter: no adapter) here"),
        ("merge_lora.py", "--base_model={base}", 4, "adapter: no adapter here"),
    ],
)
def test_a_path_that_exists_but_is_unusable_is_no_argument_fault(kind, flags, code, named, base, monkeypatch, capsys):
    write_rows(Path("counted.json"), tiny_models.ROWS)
    script = "generate.py" if kind == "batch" else kind
    argv = command(kind, *flags.format(base=base).split())
    got, _, line = ends(MAIN[script], argv, monkeypatch, capsys, script)
    assert got == code
    assert re.match(rf"{script}: error: {named}.*\n\Z", line)
