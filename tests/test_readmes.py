"""The two READMEs say the same, and name what is there: links, commands, the tree."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md")}
MADE_BY_USE = {"models/", "output/"}


def blocks(readme: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", TEXTS[readme], re.DOTALL | re.MULTILINE)


def tree(readme: str) -> list[str]:
    """The names in the tree, with the folder they are indented under; columns are two blanks or more apart."""
    found: list[str] = []
    above = ""
    for line in next(block for block in blocks(readme) if block.startswith("finetune.py ")).splitlines():
        if line.startswith(" " * 8):  # a description on a line of its own
            continue
        names = re.split(r"  +", line.strip())[0].split()
        if not line.startswith(" "):
            above = names[0] if len(names) == 1 and names[0].endswith("/") else ""
        found += [(above if line.startswith(" ") else "") + name for name in names]
    return found


def anchors(readme: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", TEXTS[readme], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_both_show_the_same_commands():
    def words(readme: str) -> list[str]:
        lines = (line for block in blocks(readme) for line in block.splitlines())
        commands = r"(bash|python|pip|git|cmake|curl|vllm|transformers|for|sed|[A-Z_]+=) ?.*"
        return [re.sub(r"\s*#.*", "", line) for line in lines if re.match(commands, line)]

    assert words("README.md") == words("README_zh.md")
    assert len(words("README.md")) > 25


def test_both_show_the_same_tree():
    assert tree("README.md") == tree("README_zh.md")
    scripts = {path.name for path in ROOT.glob("*.py")}
    assert scripts | {"utils/", "templates/", "test_data/", "tests/", "scripts/lineage.py"} <= set(tree("README.md"))


def test_what_the_tree_names_is_there():
    missing = [name for name in tree("README.md") if name not in MADE_BY_USE and not list(ROOT.glob(name))]
    assert missing == []


@pytest.mark.parametrize("readme", TEXTS)
def test_every_link_leads_somewhere(readme):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", TEXTS[readme]):
        assert (ROOT / target).exists(), target
        if anchor and not target:
            assert anchor in anchors(readme), anchor


PLACES = (".", "data", "data/*", "scripts", "scripts/*", "templates", "test_data", "tests", "utils")
PAGES = [path for place in PLACES for path in sorted(ROOT.glob(f"{place}/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_every_page_leads_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\((?!http|#)([^)#]*)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("picture", sorted((ROOT / "scripts/pictures").glob("*.png")), ids=lambda path: path.name)
def test_a_picture_is_small_shown_and_has_its_command(picture):
    assert picture.stat().st_size < 150_000
    assert f"`{picture.name}`" in (ROOT / "scripts/pictures/README.md").read_text(encoding="utf-8")
    assert all(f"(scripts/pictures/{picture.name})" in text for text in TEXTS.values())


def test_what_use_leaves_beside_the_code_is_ignored_by_git():
    """Outputs of the defaults, wandb's folder, and the passwords of the README's example."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    left = {*MADE_BY_USE, "lora-alpaca/", "lora-bloom/", "answers-*/", "wandb/", "users.txt", "data/mine/", "data/raw/"}
    assert left <= set(ignored)


def test_the_tests_page_names_every_file_and_no_other():
    named = re.findall(r"`(test_[\w*]+\.py)`", (ROOT / "tests/README.md").read_text(encoding="utf-8"))
    found = {name: {path.name for path in (ROOT / "tests").glob(name)} for name in named}
    assert [name for name in found if not found[name]] == []
    assert set().union(*found.values()) == {path.name for path in (ROOT / "tests").glob("test_*.py")}


def test_the_librarys_page_has_a_line_a_room():
    named = re.findall(r"^\| `(\w+)\.py` \|", (ROOT / "utils/README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(path.stem for path in (ROOT / "utils").glob("*.py") if path.stem != "__init__")
