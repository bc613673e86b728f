"""Score what several systems answered to the same prompts: by a judge model, by people, against references.

    python judge.py ask --answers D13b-2-3=output/d,ChatGPT=output/c \\
        --base_url https://api.openai.com/v1 --model gpt-4 --output_dir output/scores     # the key: OPENAI_API_KEY
    python judge.py table --output_dir output/scores

    python judge.py sheet --answers D13b-2-3=output/d,ChatGPT=output/c --output_dir output/scores
    python judge.py collect --output_dir output/scores output/scores/sheet-1.csv output/scores/sheet-2.csv

    python judge.py auto --answers D13b-2-3=output/d,ChatGPT=output/c --output_dir output/scores

The answers are what generate.py writes (a test.json, or a folder of them) for all prompts of --test_data. Every step
reads and writes files in output_dir; ask can be interrupted at any moment and goes on with the same command.
"""

from utils import checks, cli
from utils.errors import DataFault, UnjudgedFault


def ask(
    answers: str = "",
    base_url: str = "https://api.openai.com/v1",
    model: str = "",  # the judge, such as gpt-4
    output_dir: str = "",  # where verdicts, sheets and tables of these answers lie
    mode: str = "robust",
    concurrency: int = 4,  # questions at once
    test_data: str = "./test_data",  # the prompts: a file, or a folder of categories
    temperature: float = 0.0,
    timeout: float = 120.0,
    seed: int = 42,  # of the places in which systems are shown
) -> None:
    """Ask a judge model for scores: one line a reply in output_dir/verdicts.jsonl; a rerun asks what is missing.

    answers: NAME=FILE,NAME=FILE, a test.json (or a folder of them) a system.
    base_url: any OpenAI-compatible chat endpoint.
    mode: robust asks as often as there are systems, each in each place; faithful is the original's prompt, once.
    temperature: below 0 leaves it to the server. timeout: seconds for one reply.
    """
    flags = dict(locals())
    files = checks.judging(flags)

    from utils import judging

    items = judging.read_items(files, test_data)
    calls = judging.calls(items, mode, seed)
    judging.pin(output_dir, files, items, seed)

    from utils.ask import Endpoint, ask_missing

    endpoint = Endpoint(base_url, model, temperature, timeout)
    unjudged, tokens = ask_missing(calls, endpoint, output_dir, concurrency)
    print(f"{output_dir}/verdicts.jsonl: {len(calls) - len(unjudged)} of {len(calls)} verdicts, {tokens:,} tokens")
    if unjudged:
        left = f"{len(unjudged)} of {len(calls)} stay unjudged: {judging.listed(unjudged)}"
        raise UnjudgedFault(f"{left}; run this again")


def table(output_dir: str = "") -> None:
    """Read all replies again, without network, and write table.md, table.json and scores.png."""
    checks.judging(dict(locals()))

    from utils import judging, plots, sheets, tables, verdicts

    items, seed = judging.load(output_dir)
    calls = [call for mode in checks.JUDGE_MODES for call in judging.calls(items, mode, seed)]
    judges = verdicts.by_judge(verdicts.read(output_dir), calls)
    people, note = sheets.read_people(output_dir, items)
    if not judges and not people:
        raise DataFault(f"{output_dir} holds no verdicts and no collected sheets yet")
    built = tables.build(items, judges, people)
    tables.write(output_dir, built, note)
    plots.scores({name: built[name] for name in built["ranks"]}, f"{output_dir}/scores.png")
    print(f"{output_dir}: table.md, table.json, scores.png ({', '.join(built['ranks'])})")


def sheet(
    answers: str = "",
    output_dir: str = "",
    raters: int = 2,  # so many sheets
    test_data: str = "./test_data",
    seed: int = 42,
) -> None:
    """Write a blind sheet a rater: sheet-1.csv, and sheet-1.html for those who would rather fill in a page."""
    files = checks.judging(dict(locals()))

    from utils import judging, sheets

    items = judging.read_items(files, test_data)
    judging.pin(output_dir, files, items, seed)
    for path in sheets.write(output_dir, items, raters, seed):
        print(path)


def collect(
    *sheets: str,  # the filled CSV files
    output_dir: str = "",
) -> None:
    """Read filled sheets back into output_dir/people.json, and write the tables with the people's among them."""
    checks.judging(dict(locals()))

    from utils import judging
    from utils.sheets import read_filled

    unrated = read_filled(output_dir, *judging.load(output_dir), sheets)
    table(output_dir)
    if unrated:
        raise UnjudgedFault(f"unrated: {'; '.join(unrated)}")


def auto(answers: str = "", output_dir: str = "", test_data: str = "./test_data", seed: int = 42) -> None:
    """Score against references where a prompt has one, without a judge: auto.md and auto.json.

    04analyse by its label and 09math by its result, right or wrong; any other reference by chrF.
    """
    files = checks.judging(dict(locals()))

    from utils import judging, references, tables

    items = judging.read_items(files, test_data)
    judging.pin(output_dir, files, items, seed)
    referenced = [item for item in items if item.reference is not None]
    if not referenced:
        raise DataFault(f'{test_data}: no prompt has a "reference"')
    tables.write_auto(output_dir, referenced, references.columns(referenced))
    print(f"{output_dir}: auto.md, auto.json ({len(referenced)} of {len(items)} prompts have a reference)")


if __name__ == "__main__":
    cli.run({"ask": ask, "table": table, "sheet": sheet, "collect": collect, "auto": auto})
