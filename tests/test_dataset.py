"""Rows and tokens as memory-mapped tables: what is read stays as it was, whatever the cache and the cores did."""

import json
import os
import random
import time
from pathlib import Path

import pytest
from conftest import write_rows
from tiny_models import ROWS, bpe_tokenizer

import finetune
from utils import cli, dataset, parallel
from utils.encode import encode_rows
from utils.errors import DataFault, EnvironmentFault, ModelFault
from utils.prompter import Prompter

MANY = [{"instruction": f"第{number}问", "input": "", "output": "答" * (number % 40 + 1)} for number in range(2300)]


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("DREAMERGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tokenizer():
    return bpe_tokenizer()


def load(path: str, *mix: str) -> list[dict]:
    return list(dataset.load_rows(path, mix, seed=1)[0])


def encode(rows, tokenizer, cutoff_len: int = 40, **flags):
    return dataset.encode(rows, tokenizer, Prompter("alpaca_short"), cutoff_len, **{"train_on_inputs": False, **flags})


def counted(monkeypatch, name: str) -> list:
    """Calls of a function of dataset from now on."""
    calls, plain = [], getattr(dataset, name)
    monkeypatch.setattr(dataset, name, lambda *given: calls.append(given) or plain(*given))
    return calls


# Rows


def test_rows_of_several_files_in_their_order_with_their_places(tmp_path):
    history = [["早", "早上好"], ["吃了吗", "吃了"]]
    one = write_rows(tmp_path / "one.json", [ROWS[0], {**ROWS[1], "history": history}])
    two = tmp_path / "two.jsonl"
    two.write_text(f"\n{json.dumps(ROWS[2])}\n\n{json.dumps({**ROWS[3], 'input': None})}\n")
    rows, origins = dataset.load_rows(f"{one},{two}")
    assert [(row["file"], row["line"]) for row in rows] == [(0, 1), (0, 1), (1, 2), (1, 4)]
    assert [row["output"] for row in rows] == [row["output"] for row in ROWS[:4]]
    assert rows[1]["history"] == history and rows[0]["history"] == [] and rows[3]["input"] == ""
    assert [{**origin, "sha256": len(origin["sha256"])} for origin in origins] == [
        {"path": one, "sha256": 64, "rows": 2},
        {"path": str(two), "sha256": 64, "rows": 2},
    ]


def test_a_file_whose_name_has_a_comma_is_one_file(tmp_path):
    assert len(load(write_rows(tmp_path / "a,b.json", ROWS))) == len(ROWS)


def test_shares_are_kept_without_a_row_twice(tmp_path):
    path = f"{write_rows(tmp_path / 'a.json', MANY[:300])},{write_rows(tmp_path / 'b.json', MANY[1000:1100])}"
    rows, origins = dataset.load_rows(path, ("0.6", "0.4"), seed=1)
    assert [sum(row["file"] == number for row in rows) for number in (0, 1)] == [150, 100]
    assert len({row["instruction"] for row in rows}) == 250
    assert [origin["share"] for origin in origins] == [0.6, 0.4]
    assert list(rows) == load(path, "0.6", "0.4")
    assert list(rows) != list(dataset.load_rows(path, ("0.6", "0.4"), seed=2)[0])
    with pytest.raises(DataFault, match=r"--data_mix: \[0.999, 0.001\] leaves no row of a file"):
        dataset.load_rows(path, ("0.999", "0.001"))


def test_a_changed_file_is_never_read_stale_and_the_same_content_is_read_once(own_cache, tmp_path, monkeypatch):
    read = counted(monkeypatch, "read_rows")
    path = Path(write_rows(tmp_path / "a.json", ROWS))
    times = (path.stat().st_atime, path.stat().st_mtime)
    assert load(str(path)) == load(write_rows(tmp_path / "copy.json", ROWS))
    assert len(read) == 1
    changed = path.read_text().replace("北京。", "南京。")  # as long as before
    path.write_text(changed)
    os.utime(path, times)
    assert load(str(path))[0]["output"] == "南京。" and len(read) == 2


def test_keys_that_are_not_used_are_named_once_whether_read_or_cached(own_cache, tmp_path, capsys):
    rows = [{**row, "id": number, f"extra{number}": 1} for number, row in enumerate(ROWS)]
    path = write_rows(tmp_path / "a.json", rows)
    for _ in range(2):
        load(path)
        out = capsys.readouterr().out
        assert out.count(f'{path}: the key "id" is not used ({len(ROWS)} rows)') == 1
        assert out.count("is not used") == 5 and f"nor are {len(ROWS) + 1 - 5} other keys" in out


def test_a_file_that_changes_while_it_is_read_is_refused_and_not_kept(own_cache, tmp_path, monkeypatch):
    path = Path(write_rows(tmp_path / "a.json", MANY))
    plain = dataset.read_rows

    def changing(name, unused):
        for number, row in enumerate(plain(name, unused)):
            if number == 1000:
                path.write_text(path.read_text().replace("第2299问", "第9999问"))
            yield row

    monkeypatch.setattr(dataset, "read_rows", changing)
    with pytest.raises(ModelFault, match=r"a.json was changed while it was read: [0-9a-f]{12} -> [0-9a-f]{12}"):
        load(str(path))
    assert not [entry for entry in own_cache.iterdir() if entry.is_dir()]


def test_the_split_is_the_same_for_the_same_seed_and_keeps_the_order(tmp_path):
    rows, _ = dataset.load_rows(write_rows(tmp_path / "a.json", MANY[:100]))
    train, held_out = (part["instruction"][:] for part in dataset.split(rows, 10, 3))
    chosen = sorted(random.Random(3).sample(range(100), 10))
    assert held_out == [MANY[index]["instruction"] for index in chosen]
    assert train == [row["instruction"] for index, row in enumerate(MANY[:100]) if index not in chosen]
    assert [len(part) for part in dataset.split(rows, 0, 3)] == [100, 0]


def test_a_hub_set_is_checked_row_by_row(own_cache, monkeypatch):
    table = dataset.datasets.Dataset.from_list([{"instruction": "a", "input": None, "output": "b"}] * 2)
    monkeypatch.setattr(dataset.datasets, "load_dataset", lambda name, split: table)
    rows, (origin,) = dataset.load_rows("owner/set")
    assert rows[1]["input"] == "" and rows[1]["line"] == 2 and origin["path"] == "owner/set"
    broken = dataset.datasets.Dataset.from_dict({"instruction": ["a", "a"], "output": ["b", ""]})
    monkeypatch.setattr(dataset.datasets, "load_dataset", lambda name, split: broken)
    with pytest.raises(DataFault, match=r'owner/set:2: "output" is empty'):
        dataset.load_rows("owner/set")


def test_a_hub_set_that_cannot_be_reached_is_the_environments_fault(monkeypatch):
    def offline(name, split):
        raise ConnectionError("offline")

    monkeypatch.setattr(dataset.datasets, "load_dataset", offline)
    with pytest.raises(EnvironmentFault, match="--data_path: owner/set is no file here"):
        dataset.load_rows("owner/set")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"data_path": "a.json,b.json"}, "--data_path: b.json does not exist"),
        ({"data_path": "a.json,a.json"}, "--data_path: a.json is named twice"),
        ({"data_path": "a.json,"}, "--data_path: a name is missing beside a comma"),
        ({"data_mix": "0.7,0.3"}, "--data_mix: 0.7,0.3 has 2 shares for 1 files of --data_path"),
        ({"data_mix": "0.7"}, "--data_mix: 0.7 sums to 0.7, must sum to 1"),
        ({"data_mix": "all"}, "--data_mix: all must be shares above 0 such as 0.7,0.3"),
        ({"data_path": "a.json,c.json", "data_mix": "1,0"}, "--data_mix: 1,0 must be shares above 0"),
        (
            {"last_turn_only": True, "train_on_inputs": True},
            "--last_turn_only: has no effect while prompts are learned",
        ),
    ],
)
def test_flags_about_the_data_are_checked_before_anything_is_read(base, tmp_path, monkeypatch, capsys, flags, problem):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "a.json", ROWS), write_rows(tmp_path / "c.json", ROWS)
    given = {"base_model": base, "data_path": "a.json", "output_dir": "out", **flags}
    with pytest.raises(SystemExit) as left:
        cli.run(finetune.train, [f"--{name}={value}" for name, value in given.items()])
    assert left.value.code == 2 and problem in capsys.readouterr().err


def test_a_run_on_a_mixture_records_its_shares_and_goes_on_only_with_them(quick, tmp_path):
    flags = {
        **quick,
        "data_path": f"{quick['data_path']},{write_rows(tmp_path / 'b.json', MANY[:40])}",
        "val_set_size": 0,
    }
    finetune.train(**flags, data_mix=("0.5", "0.5"))
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [(origin["rows"], origin["share"]) for origin in run["data"]] == [(8, 0.5), (40, 0.5)]
    assert run["rows"]["training"]["rows"] == 16
    with pytest.raises(ModelFault, match=r"--data_mix: \[0.5,0.5\] -> \[0.4,0.6\]"):
        finetune.train(**flags, data_mix=("0.4", "0.6"))


# Tokens


def test_tokens_are_those_of_each_row_alone_and_do_not_depend_on_cores_or_cache(
    own_cache, tmp_path, monkeypatch, tokenizer
):
    rows, _ = dataset.load_rows(write_rows(tmp_path / "a.json", MANY))
    tables = []
    for number in (1, 3):
        monkeypatch.setenv("DREAMERGPT_CACHE", str(tmp_path / f"cache-{number}"))
        monkeypatch.setattr(parallel, "cores", lambda number=number: number)
        encoded, counts = encode(rows, tokenizer)
        again, counts_again = encode(rows, tokenizer)
        assert counts == counts_again and encoded[:] == again[:]
        (table,) = (path for path in (tmp_path / f"cache-{number}").glob("*/table.arrow"))
        tables.append(table.read_bytes())
    assert tables[0] == tables[1]
    prompter = Prompter("alpaca_short")
    alone = [encode_rows(tokenizer, prompter, [row], 40, False)[0] for row in MANY]
    kept = [row for row in alone if any(label != -100 for label in row["labels"][1:])]
    for name in ("input_ids", "labels"):
        assert encoded[name][:] == [row[name] for row in kept]
    assert encoded["length"][:] == [len(row["input_ids"]) for row in kept]
    assert counts == {
        "rows": len(kept),
        "masked": len(MANY) - len(kept),
        "truncated": sum(row["whole"] > 40 for row in alone),
        "tokens": sum(len(row["input_ids"]) for row in kept),
        "supervised": sum(label != -100 for row in kept for label in row["labels"][1:]),
        "answers": len(MANY),
        "ended": sum(row["ended"] for row in alone),
    }


def test_every_setting_that_changes_tokens_has_its_own_table(own_cache, tmp_path, monkeypatch, tokenizer):
    work = counted(monkeypatch, "_encoded_batches")
    rows, _ = dataset.load_rows(write_rows(tmp_path / "a.json", [{**row, "history": [["问", "答"]]} for row in ROWS]))
    prompter, other = Prompter("alpaca_short"), bpe_tokenizer(390)
    given = [
        (rows, tokenizer, prompter, 300, False, False),
        (rows, tokenizer, prompter, 301, False, False),
        (rows, tokenizer, prompter, 300, True, False),
        (rows, tokenizer, prompter, 300, False, True),
        (rows, tokenizer, Prompter("vigogne"), 300, False, False),
        (rows, other, prompter, 300, False, False),
        (dataset.split(rows, 2, 1)[0], tokenizer, prompter, 300, False, False),
        (dataset.split(rows, 2, 2)[0], tokenizer, prompter, 300, False, False),
    ]
    tables = [dataset.encode(*one)[0] for one in given]
    assert len(work) == len(given)
    assert [dataset.encode(*one)[0][:] for one in given] == [table[:] for table in tables]
    assert len(work) == len(given)
    assert len({json.dumps(table[:]) for table in tables}) >= 7


@pytest.mark.parametrize("templates", ["{{ messages }}", {"default": "{{ messages }}", "tool_use": "{{ tools }}"}])
def test_a_tokenizers_chat_templates_make_no_other_table(own_cache, tmp_path, monkeypatch, templates):
    """One is saved as a file, several also in a folder of their own."""
    work = counted(monkeypatch, "_encoded_batches")
    rows, _ = dataset.load_rows(write_rows(tmp_path / "a.json", ROWS))
    plain, talking = bpe_tokenizer(), bpe_tokenizer()
    talking.chat_template = templates
    assert encode(rows, talking)[0][:] == encode(rows, plain)[0][:] and len(work) == 1


def test_rows_with_nothing_to_learn_are_left_out_and_an_error_when_all_are(tmp_path, tokenizer):
    long = {**ROWS[0], "instruction": "问" * 500}
    rows, _ = dataset.load_rows(write_rows(tmp_path / "a.json", [long, *ROWS]))
    encoded, counts = encode(rows, tokenizer, 100)
    assert (len(encoded), counts["masked"], counts["answers"]) == (len(ROWS), 1, len(ROWS) + 1)
    with pytest.raises(DataFault, match="--cutoff_len 5 leaves no answer of any of the 9 rows"):
        encode(rows, tokenizer, 5)


def test_a_row_of_40_mb_is_cut_counted_and_tokenized_no_further_than_needed(tmp_path, tokenizer):
    huge = {**ROWS[0], "output": "长" * 14_000_000}
    rows, _ = dataset.load_rows(write_rows(tmp_path / "a.json", [huge, *ROWS]))
    start = time.process_time()
    encoded, counts = encode(rows, tokenizer, 100)
    assert time.process_time() - start < 5
    assert counts["truncated"] == 1 and encoded[0]["length"] == 100 and encoded[0]["whole"] > 100


def test_what_raises_in_a_process_is_raised_here_and_ends_the_others(own_cache, tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(parallel, "cores", lambda: 2)

    def broken(*given, **settings):
        raise DataFault("no")

    monkeypatch.setattr(dataset, "encode_rows", broken)
    rows, _ = dataset.load_rows(write_rows(tmp_path / "a.json", MANY))
    with pytest.raises(DataFault, match=r"^no$"):
        encode(rows, tokenizer)
    assert len([entry for entry in own_cache.iterdir() if entry.is_dir()]) == 1  # the rows; no tokens
