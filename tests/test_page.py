"""The page in a real headless Chromium: what a reader types, sees, stops, switches and downloads.

python -m pytest tests/test_page.py

It needs Debian's chromium (apt-get install chromium) and the package playwright; without them it says so and skips.
PAGE_PICTURES=folder keeps screenshots.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from test_web import Conversation, free_port, launch
from tiny_models import KNOWN, ROWS

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no chromium here (apt-get install chromium)", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here (pip install playwright)")
playwright.expect.set_options(timeout=15000)  # a busy machine is no fault of the page

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def made_up():
    """The address of a page whose answers say what they were asked (see test_web), and its conversation."""
    conversation = Conversation()
    page, port, _ = launch(conversation)
    yield f"http://127.0.0.1:{port}", conversation
    page.close()


@pytest.fixture(scope="module")
def real(stage, silent):
    """The address of generate.py's own page on the tiny model, with two adapters."""
    port = free_port()
    command = [
        sys.executable, str(ROOT / "generate.py"), f"--base_model={stage['base_model']}",
        f"--lora_weights={stage['output_dir']},{silent}", "--max_new_tokens=40", f"--server_port={port}",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx.get(f"{address}/config")
            break
        except httpx.TransportError:
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(0.1)
    yield address
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130  # Python, torch in it, ends slowly on a busy machine


def visit(browser, address: str, locale: str = "en-US", script: str = ""):
    page = browser.new_context(locale=locale, viewport={"width": 1100, "height": 1300}).new_page()
    page.add_init_script(script)
    page.goto(address)
    page.locator("#message textarea").wait_for()
    return page


def say(page, text: str) -> None:
    page.locator("#message textarea").fill(text)
    page.locator("#message textarea").press("Enter")


def answers(page) -> list[str]:
    return [one.strip() for one in page.locator("#chat .bot.message").all_inner_texts()]


def expect_answer(page, number: int, text: str) -> None:
    playwright.expect(page.locator("#chat .bot.message").nth(number)).to_contain_text(text, timeout=15000)


def picture(page, name: str) -> None:
    if folder := os.environ.get("PAGE_PICTURES"):
        page.wait_for_timeout(700)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def test_a_question_its_answer_and_another_adapter(browser, real):
    page = visit(browser, real)
    say(page, ROWS[0]["instruction"])
    expect_answer(page, 0, ROWS[0]["output"])
    assert page.locator("#message textarea").input_value() == ""
    assert "adapter (stage 1: rows.json, 8 rows" in page.locator("#about").inner_text()
    assert page.get_by_label("Model").input_value() == "adapter"
    picture(page, "answer")
    page.locator("#clear").click()
    playwright.expect(page.locator("#chat .bot.message")).to_have_count(0)
    page.get_by_label("Model").click()
    page.get_by_role("option", name="silent").click()
    playwright.expect(page.locator("#about")).to_contain_text("silent")
    say(page, ROWS[0]["instruction"])
    expect_answer(page, 0, KNOWN[0]["output"])
    picture(page, "other-adapter")


def test_a_conversation_is_downloaded_as_training_rows(browser, real):
    page = visit(browser, real)
    for number, row in enumerate(ROWS[:2]):
        say(page, row["instruction"])
        playwright.expect(page.locator("#chat .bot.message")).to_have_count(number + 1)
        page.wait_for_timeout(1000)
    with page.expect_download() as download:
        page.locator("#download").click()
    (row,) = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert download.value.suggested_filename == "conversation.json"
    assert (
        row["history"] == [[ROWS[0]["instruction"], ROWS[0]["output"]]] and row["instruction"] == ROWS[1]["instruction"]
    )


def test_an_answer_streams_until_stop_and_the_next_turn_remembers(browser, made_up):
    address, conversation = made_up
    page = visit(browser, address)
    say(page, "slow")
    expect_answer(page, 0, "…")
    assert conversation.running == 1
    before = conversation.steps
    page.locator("#message textarea").fill("然后")  # while the answer grows
    page.wait_for_timeout(300)
    assert conversation.steps > before
    page.locator("#stop").click()
    page.wait_for_timeout(1000)
    assert conversation.running == 0
    assert page.locator("#message textarea").input_value() == "然后"
    page.locator("#message textarea").press("Enter")
    expect_answer(page, 1, '[["slow", "…"]]')
    playwright.expect(page.locator("#notice")).to_contain_text("cut")
    page.locator("#undo").click()
    playwright.expect(page.locator("#chat .bot.message")).to_have_count(1)
    assert page.locator("#message textarea").input_value() == "然后"
    page.locator("#chat").get_by_label("Clear").click()  # the chat's own button forgets too
    playwright.expect(page.locator("#chat .bot.message")).to_have_count(0)
    say(page, "又")
    expect_answer(page, 0, '["one", "又", "", [], ')


def test_who_closes_the_page_ends_the_answer(browser, made_up):
    address, conversation = made_up
    page = visit(browser, address)
    say(page, "slow")
    expect_answer(page, 0, "…")
    page.context.close()
    begin = time.monotonic()
    while conversation.running and time.monotonic() - begin < 5:
        time.sleep(0.02)
    assert time.monotonic() - begin < 1


def test_an_error_is_shown_in_one_line_and_the_page_goes_on(browser, made_up):
    page = visit(browser, made_up[0])
    say(page, "先")
    expect_answer(page, 0, "先")
    say(page, "boom")
    playwright.expect(page.get_by_test_id("toast-body").first).to_contain_text("inside")
    picture(page, "error")
    assert page.locator("#chat").get_by_text("Error", exact=True).filter(visible=True).count() == 0
    assert page.locator("#message").get_by_text("Error", exact=True).filter(visible=True).count() == 0
    say(page, "问")
    expect_answer(page, 1, "问")


def test_an_instruction_an_example_and_a_setting(browser, made_up):
    page = visit(browser, made_up[0])
    page.get_by_label("Seed").fill("7")  # at once, by who has not waited for anything
    page.get_by_role("tab", name="Instruction").click()
    page.get_by_role("button", name="例", exact=True).last.click()
    playwright.expect(page.locator("#input textarea")).to_have_value("子")
    page.locator("#ask").click()
    playwright.expect(page.locator("#answer textarea")).to_have_value(
        json.dumps(["one", "例", "子", [], SEVEN], ensure_ascii=False, sort_keys=True), timeout=15000
    )
    picture(page, "instruction")


SLOW = """const frame = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (work) => frame(() => setTimeout(() => work(performance.now()), 600));"""


def test_a_setting_typed_at_once_reaches_the_model_though_the_browser_is_slow(browser, made_up):
    """Gradio fills the fields of what was hidden a frame after it is opened, whatever they hold by then."""
    page = visit(browser, made_up[0], script=SLOW)
    if not page.get_by_label("Seed").is_visible():
        page.get_by_text("Settings", exact=True).click()
    page.get_by_label("Seed").fill("7")
    page.wait_for_timeout(900)
    say(page, "问")
    expect_answer(page, 0, '"seed": 7')


SEVEN = {"temperature": 0, "top_p": 0.75, "top_k": 40, "num_beams": 1, "max_new_tokens": 512, "seed": 7}
LABELS = {
    "en-US": ("Chat", "Message", "Send", "Stop", "Retry", "Undo", "Clear", "Download as training rows", "Settings"),
    "zh-CN": ("对话", "消息", "发送", "停止", "重试", "撤回", "清空", "下载为训练数据", "设置"),
}


@pytest.mark.parametrize("locale", LABELS)
def test_the_page_speaks_the_language_of_the_browser(locale, browser, made_up):
    page = visit(browser, made_up[0], locale)
    text = page.locator("body").inner_text()
    other = LABELS["zh-CN" if locale == "en-US" else "en-US"]
    assert [label for label in LABELS[locale] if label not in text] == []
    assert [label for label in other if label in text] == []
    assert "__i18n__" not in text and "i18n" not in text
    picture(page, locale)
