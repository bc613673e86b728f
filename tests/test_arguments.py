"""The command line: what is refused, in which words, and that nothing has started by then.

python -m pytest tests/test_arguments.py
"""

import inspect
import re
import time

import pytest
from commands import FLAGS, HEAVY, MAIN, command, ends, real, received, refusal

import merge_lora
from utils import errors

pytestmark = pytest.mark.usefixtures("nothing_starts")

# --- The flags themselves ---


@pytest.mark.parametrize("script", FLAGS)
def test_every_flag_has_its_name_and_default(script):
    defaults = {name: parameter.default for name, parameter in inspect.signature(MAIN[script]).parameters.items()}
    assert {name: defaults.get(name, "no such flag") for name in FLAGS[script]} == FLAGS[script]


@pytest.mark.parametrize("script", MAIN)
def test_every_flag_has_a_type_that_is_checked(script):
    for parameter in inspect.signature(MAIN[script]).parameters.values():
        assert parameter.annotation in (str, int, float, bool, tuple[str, ...]), parameter


@pytest.mark.parametrize("script", MAIN)
def test_help_lists_every_flag_with_its_default(script, monkeypatch, capsys):
    code, out, err = ends(MAIN[script], ["--help"], monkeypatch, capsys, script)
    assert (code, err) == (0, "")
    assert inspect.cleandoc(MAIN[script].__doc__) in out
    for name in [*FLAGS[script], "debug"]:
        assert f"  --{name} " in out
    assert script != "finetune.py" or re.search(r"--learning_rate +float +0\.0003\n", out)


@pytest.mark.parametrize("argv", [["--help"], ["--learning_rat", "1e-4"], ["--base_model", "/no/where"]], ids=" ".join)
@pytest.mark.parametrize("script", MAIN)
def test_the_answer_takes_under_a_second_and_loads_nothing_heavy(script, argv):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        real(script, *argv)
        times.append(time.perf_counter() - start)
        if times[-1] < 1:
            break
    assert min(times) < 1
    report = real(script, *argv, python=("-X", "importtime")).stderr
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in report.splitlines()}
    assert "utils" in loaded and not loaded & HEAVY


@pytest.mark.parametrize(
    "script, argv, message",
    [
        ("finetune.py", ["--learning_rat", "1e-4"], "unknown flag --learning_rat (did you mean --learning_rate?)"),
        ("finetune.py", [], "--base_model is missing: a model folder or a Hub name; --data_path is missing: "),
        ("generate.py", ["--load_8bit", "Flase"], '--load_8bit: "Flase" is neither True nor False'),
        ("merge_lora.py", ["--lora_modle", "x"], "unknown flag --lora_modle (did you mean --lora_model?)"),
    ],
)
def test_a_real_process_leaves_with_2_and_one_line(script, argv, message):
    done = real(script, *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{script}: error: {message}") and done.stderr.count("\n") == 1


# --- Reading the line ---


@pytest.mark.parametrize(
    "token, hint",
    [
        ("--learning_rat", "did you mean --learning_rate?"),
        ("--learning-rate", "did you mean --learning_rate?"),
        ("--Learning_rate", "did you mean --learning_rate?"),
        ("--learning", "did you mean --learning_rate?"),
        ("--lr", "--help lists them"),
        ("--base", "did you mean --base_model?"),
        ("--val_size", "did you mean --val_set_size?"),
        ("--load_in_8bit", "did you mean --load_8bit?"),
        ("--debgu", "did you mean --debug?"),
    ],
)
def test_a_mistyped_or_abbreviated_flag_starts_nothing(token, hint, monkeypatch, capsys):
    expected = f"unknown flag {token} ({hint})"
    assert refusal("finetune.py", [*command("finetune.py"), token, "1e-4"], monkeypatch, capsys) == expected
    assert refusal("finetune.py", [*command("finetune.py"), f"{token}=1e-4"], monkeypatch, capsys) == expected


@pytest.mark.parametrize("token", ["out", "-b", "-base_model", "-", "1e-4"])
def test_what_is_no_flag_is_no_silent_position(token, monkeypatch, capsys):
    message = refusal("finetune.py", [token, *command("finetune.py")], monkeypatch, capsys)
    assert message == f'"{token}" is not a flag (flags are --name value)'


def test_two_dashes_alone_hand_nothing_to_fire(monkeypatch, capsys):
    assert "unknown flag --" in refusal("finetune.py", [*command("finetune.py"), "--", "--trace"], monkeypatch, capsys)


def test_a_flag_given_twice(monkeypatch, capsys):
    argv = [*command("finetune.py"), "--seed", "1", "--seed=1"]
    assert refusal("finetune.py", argv, monkeypatch, capsys) == "--seed is given twice"


@pytest.mark.parametrize("rest", [[], ["--seed", "1"]], ids=["at the end", "before a flag"])
@pytest.mark.parametrize("flag", ["--learning_rate", "--resume_from_checkpoint", "--lora_target_modules"])
def test_a_flag_without_its_value(flag, rest, monkeypatch, capsys):
    message = refusal("finetune.py", [*command("finetune.py"), flag, *rest], monkeypatch, capsys)
    assert message == f"{flag} needs a value"


@pytest.mark.parametrize(
    "flag, value, message",
    [
        ("batch_size", "many", '"many" is not a whole number'),
        ("batch_size", "1e3", '"1e3" is not a whole number'),
        ("num_epochs", "2.5", '"2.5" is not a whole number'),
        ("num_epochs", "", '"" is not a whole number'),
        ("val_set_size", "None", '"None" is not a whole number'),
        ("learning_rate", "fast", '"fast" is not a number'),
        ("learning_rate", "1e-4x", '"1e-4x" is not a number'),
        ("lora_dropout", "0,05", '"0,05" is not a number'),
        ("lora_target_modules", "[q_proj", '"[q_proj" is not a list like [q_proj,v_proj]'),
        ("lora_target_modules", "[q_proj v_proj]", '"[q_proj v_proj]" is not a list like [q_proj,v_proj]'),
        ("lora_target_modules", "[[q_proj]]", '"[[q_proj]]" is not a list like [q_proj,v_proj]'),
    ],
)
def test_a_value_of_the_wrong_type(flag, value, message, monkeypatch, capsys):
    argv = [*command("finetune.py"), f"--{flag}", value]
    assert refusal("finetune.py", argv, monkeypatch, capsys) == f"--{flag}: {message}"


@pytest.mark.parametrize("value", ["Flase", "1", "0", "yes", "TRUE", "None", ""])
def test_a_boolean_is_true_or_false(value, monkeypatch, capsys):
    argv = [*command("finetune.py"), "--train_on_inputs", value]
    expected = f'--train_on_inputs: "{value}" is neither True nor False'
    assert refusal("finetune.py", argv, monkeypatch, capsys) == expected


@pytest.mark.parametrize(
    "argv, on, off",
    [
        ([], False, True),
        (["--on"], True, True),
        (["--on", "--off", "False"], True, False),
        (["--on", "True", "--off=False"], True, False),
        (["--on=true", "--off", "false"], True, False),
        (["--on", "False", "--off"], False, True),
    ],
)
def test_a_boolean_in_its_three_forms(argv, on, off, monkeypatch, capsys):
    got = received(argv, monkeypatch, capsys)
    assert (got["on"], got["off"]) == (on, off)


@pytest.mark.parametrize("text", ["[a,b]", "a,b", "['a', 'b']", '["a","b"]', "(a, b)", " [a , b,] ", "[a,,b]"])
def test_a_list_of_names(text, monkeypatch, capsys):
    assert received(["--names", text], monkeypatch, capsys)["names"] == ("a", "b")


@pytest.mark.parametrize(
    "text",
    ["007", "1e4", "0x10", "1_000", "True", "None", "", "a b", " a ", "a=b", "=", "--a=b", "-x", "-", "[1]", "(1,2)",
     "{'a': 1}", "'a'", '"', "#a", "$(id)", ";", "*", "~", "a\nb", "\\n", "a,b", "help", "梦想家"],
)  # fmt: skip
def test_text_stays_the_text_it_is(text, monkeypatch, capsys):
    assert received([f"--name={text}"], monkeypatch, capsys)["name"] == text
    if not text.startswith("--"):
        assert received(["--name", text], monkeypatch, capsys)["name"] == text


def test_numbers_and_what_was_given(monkeypatch, capsys):
    got = received(["--number", "-7", "--rate", "1e-4", "--names=q_proj"], monkeypatch, capsys)
    assert (got["number"], got["rate"], got["names"]) == (-7, 1e-4, ("q_proj",))
    assert (got["name"], got["on"], got["off"]) == ("", False, True)
    assert got["given"] == {"number", "rate", "names"}


def test_all_problems_of_the_line_come_at_once(monkeypatch, capsys):
    argv = ["--batch_sise", "3", "--seed", "x", "stray", "--overwrite", "Flase", "--seed", "2", "--dtype"]
    assert refusal("finetune.py", argv, monkeypatch, capsys).split("; ") == [
        "unknown flag --batch_sise (did you mean --batch_size?)",
        '--seed: "x" is not a whole number',
        '"stray" is not a flag (flags are --name value)',
        '--overwrite: "Flase" is neither True nor False',
        "--seed is given twice",
        "--dtype needs a value",
    ]


def test_all_problems_of_the_values_come_at_once(monkeypatch, capsys):
    argv = ["--data_path=none.json", "--num_epochs=0", "--learning_rate=nan", "--val_set_size=-1", "--load_4bit"]
    message = refusal("finetune.py", argv, monkeypatch, capsys)
    named = re.findall(r"--(\w+)(?::| is missing| and)", message)
    assert named == ["num_epochs", "learning_rate", "base_model", "data_path", "load_8bit", "val_set_size"]


# --- The exit codes ---


@pytest.mark.parametrize(
    "fault, code",
    [
        (errors.ArgumentFault("no"), 2),
        (errors.DataFault("no"), 3),
        (errors.ModelFault("no"), 4),
        (errors.EnvironmentFault("no"), 5),
        (errors.Interrupted(15, "no"), 143),
        (OSError(28, "No space left on device", "out/x"), 5),
        (PermissionError(13, "Permission denied", "out/x"), 5),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize(
    "debug", [[], ["--debug", "False"], ["--debug"], ["--debug", "True"], ["--debug=True"]], ids=" ".join
)
def test_a_fault_ends_with_its_code_and_a_traceback_only_for_debug(fault, code, debug, monkeypatch, capsys):
    def main(seed: int = 0) -> None:
        raise fault

    got, _, err = ends(main, ["--seed", "3", *debug], monkeypatch, capsys)
    assert got == code
    assert err.splitlines()[-1].startswith("probe.py: ")
    wanted = bool(debug) and "False" not in debug
    assert ("Traceback" in err) == wanted
    assert wanted or err.count("\n") == 1


def test_debug_shows_where_the_arguments_were_refused(monkeypatch, capsys):
    code, _, err = ends(merge_lora.main, ["--debug", "--lora", "x"], monkeypatch, capsys)
    assert code == 2 and "Traceback" in err and err.endswith("(did you mean --lora_model?)\n")


def test_an_error_of_our_own_is_not_dressed_up(monkeypatch, capsys):
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ends(main, [], monkeypatch, capsys)
