"""The chat page: a Gradio page around the conversation it is given; it knows nothing of models."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

# From these Gradio takes files to serve (an empty allowed_paths does not overrule them), an editor of its own code, and
# where it is: what the page needs is said in `serve`.
for variable in [name for name in os.environ if name.startswith("GRADIO_")]:
    del os.environ[variable]
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio  # noqa: E402 - it reads the environment

TEXTS = {
    "chat": ("Chat", "对话"),
    "instruct": ("Instruction", "指令"),
    "message": ("Message", "消息"),
    "message_hint": ("Enter sends, Shift+Enter begins a new line", "回车发送，Shift+回车换行"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "retry": ("Retry", "重试"),
    "undo": ("Undo", "撤回"),
    "clear": ("Clear", "清空"),
    "download": ("Download as training rows", "下载为训练数据"),
    "instruction": ("Instruction", "指令"),
    "input": ("Input (optional)", "补充输入（可不填）"),
    "answer": ("Answer", "回答"),
    "adapter": ("Model", "模型"),
    "settings": ("Settings", "设置"),
    "examples": ("Examples", "示例"),
    "temperature": ("Temperature (0: always the likeliest)", "温度（0：总取最可能的词）"),
    "top_p": ("Top p", "Top p"),
    "top_k": ("Top k", "Top k"),
    "num_beams": ("Beams (above 1: shown when complete)", "束宽（大于 1：完成后一次显示）"),
    "max_new_tokens": ("Max new tokens", "最多生成 token 数"),
    "seed": ("Seed", "随机种子"),
}
PREFIX = "dreamer_"  # of the keys: the page translates any text that is a key, an adapter's name too
TOGETHER = 4  # answers that grow at the same time, a token of one and then of another
WAITING = 64  # requests that may wait; the next ones are told that the page is busy
STEPS = {"temperature": 0.05, "top_p": 0.01, "top_k": 1, "num_beams": 1, "max_new_tokens": 1}
_SAVE = """(text) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "conversation.json";
  link.click();
  URL.revokeObjectURL(link.href);
}"""
Turns = list[list[str]]


class Conversation(Protocol):
    """What the page is built around; all that it refuses it raises with one line.

    names: what can answer; defaults, ranges: of the settings, by name.
    """

    names: list[str]
    defaults: dict[str, Any]
    ranges: dict[str, tuple[Any, Any]]

    def about(self, name: object) -> str:
        """A line about one of names."""

    def respond(
        self, name: object, instruction: object, input: object, history: Turns, settings: Mapping[str, object]
    ) -> Iterator[Any]:
        """The answer, in pieces with .text (all of it so far) and .notice."""


def texts() -> gradio.I18n:
    """The labels in English and Chinese; the browser's language decides."""
    english, chinese = ({f"{PREFIX}{key}": both[which] for key, both in TEXTS.items()} for which in (0, 1))
    return gradio.I18n(**{"en": english, "zh": chinese, "zh-CN": chinese, "zh-TW": chinese})


def say(key: str) -> gradio.i18n.I18nData:
    """The label of TEXTS, translated by the browser."""
    return texts()(f"{PREFIX}{key}")


def build(
    conversation: Conversation, title: str, examples: list[tuple[str, str]], rows_of: Callable[[Turns], str]
) -> gradio.Blocks:
    """The page. examples: (instruction, input) to begin with; rows_of: a conversation as the text of a file."""
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gradio.Markdown(f"## {title}")
        names = conversation.names
        adapter = gradio.Dropdown(names, value=names[0], label=say("adapter"), interactive=len(names) > 1)
        about = gradio.Markdown(_plain(conversation.about(names[0])), elem_id="about")
        _on(adapter.change, lambda model: _plain(_told(conversation.about, model)), {"model": adapter}, about, "about")
        # Drawn below the tabs. Open: Gradio gives the fields of a closed one their first values again, a moment after
        # it is opened, and what a quick reader has typed by then is lost.
        with gradio.Accordion(say("settings"), open=True, render=False) as drawer:
            settings = _settings(conversation)
        with gradio.Tab(say("chat")):
            _chat_tab(conversation, adapter, settings, examples, rows_of)
        with gradio.Tab(say("instruct")):
            _instruction_tab(conversation, adapter, settings, examples)
        drawer.render()
    return page


def _settings(conversation: Conversation) -> dict[str, gradio.components.Component]:
    fields = {}
    names = list(conversation.ranges)
    for row in (names[:3], names[3:]):
        with gradio.Row():
            for name in row:
                (low, high), value = conversation.ranges[name], conversation.defaults[name]
                if name in STEPS:
                    fields[name] = gradio.Slider(low, high, value, step=STEPS[name], label=say(name))
                else:
                    fields[name] = gradio.Number(value, label=say(name), precision=0, minimum=low, maximum=high)
    return fields


def _chat_tab(
    conversation: Conversation,
    adapter: gradio.Dropdown,
    settings: dict,
    examples: list[tuple[str, str]],
    rows_of: Callable[[Turns], str],
) -> None:
    turns = gradio.State([])
    shown = gradio.Chatbot(label=say("chat"), height=420, elem_id="chat", buttons=["copy"], allow_file_downloads=False)
    notice = gradio.Markdown(elem_id="notice", min_height=48)  # progress and errors too: they would cover the chat
    field = gradio.Textbox(
        label=say("message"), placeholder=say("message_hint"), lines=1, max_lines=8, elem_id="message"
    )
    with gradio.Row():
        stop = gradio.Button(say("stop"), elem_id="stop")
        send = gradio.Button(say("send"), variant="primary", elem_id="send", scale=3)
    with gradio.Row():
        retry = gradio.Button(say("retry"), elem_id="retry", size="md")
        undo = gradio.Button(say("undo"), elem_id="undo", size="md")
        clear = gradio.Button(say("clear"), elem_id="clear", size="md")
        download = gradio.Button(say("download"), elem_id="download", size="md", scale=2)
    file = gradio.Textbox(visible="hidden", elem_id="file")
    joined = [f"{text}\n{more}" if more else text for text, more in examples]
    _examples([[text] for text in joined], [field])

    def reply(message: object, history: Turns, model: object, **chosen: Any) -> Iterator[dict]:
        emptied = {field: ""}  # once: the reader may be typing the next message while the answer grows
        for piece in _pieces(conversation, model, message, "", history, chosen):
            now = [*history, [message, piece.text]]
            yield {turns: now, shown: _messages(now), notice: piece.notice, **emptied}
            emptied = {}

    def again(history: Turns, seed: object, temperature: object, **more: Any) -> Iterator[dict]:
        if not history:
            raise _refusal("没有可重试的回答。There is no answer to retry.")
        *before, (text, _) = history
        if temperature and isinstance(seed, int):
            seed = (seed + 1) % 2**32  # the same seed would draw the same answer
        for update in reply(text, before, seed=seed, temperature=temperature, **more):
            yield {**update, settings["seed"]: seed, field: gradio.skip()}

    def back(history: Turns) -> tuple:
        kept, last = history[:-1], history[-1:]
        return kept, _messages(kept), "", last[0][0] if last else gradio.skip()

    state = {"history": turns}
    inputs = {**state, "model": adapter, **settings}
    outputs = [turns, shown, notice, field]
    kind = {"slow": True, "show_progress_on": notice}
    running = [
        _on(send.click, reply, {"message": field, **inputs}, outputs, "chat", **kind),
        _on(field.submit, reply, {"message": field, **inputs}, outputs, None, **kind),
        _on(retry.click, again, inputs, [*outputs, settings["seed"]], "retry", **kind),
    ]
    stop.click(None, cancels=running, api_visibility="private")
    _on(undo.click, back, state, outputs, "undo", cancels=running)
    for listen, name in ((clear.click, "clear"), (shown.clear, None)):
        _on(listen, lambda: ([], [], "", gradio.skip()), {}, outputs, name, cancels=running)
    rows = _on(download.click, lambda history: rows_of(history), state, file, "rows")
    rows.then(None, file, None, js=_SAVE, api_visibility="private")


def _examples(examples: list[list[str]], fields: list) -> None:
    labels = [first if len(first) <= 24 else f"{first[:23]}…" for first, *_ in examples]
    gradio.Examples(examples, fields, label=say("examples"), example_labels=labels, api_visibility="private")


def _instruction_tab(
    conversation: Conversation, adapter: gradio.Dropdown, settings: dict, examples: list[tuple[str, str]]
) -> None:
    with gradio.Row():
        with gradio.Column():
            instruction = gradio.Textbox(label=say("instruction"), lines=3, elem_id="instruction")
            more = gradio.Textbox("", label=say("input"), lines=3, elem_id="input")
            with gradio.Row():
                stop = gradio.Button(say("stop"))
                send = gradio.Button(say("send"), variant="primary", elem_id="ask")
        output = gradio.Textbox(label=say("answer"), lines=12, interactive=False, elem_id="answer")
    _examples([list(example) for example in examples], [instruction, more])

    def answer(instruction: object, input: object, model: object, **chosen: Any) -> Iterator[str]:
        for piece in _pieces(conversation, model, instruction, input, [], chosen):
            yield piece.text

    inputs = {"instruction": instruction, "input": more, "model": adapter, **settings}
    running = _on(send.click, answer, inputs, output, "answer", slow=True)
    stop.click(None, cancels=[running], api_visibility="private")


def _on(
    listen: Callable,
    work: Callable,
    inputs: dict,
    outputs: object,
    api_name: str | None,
    slow: bool = False,
    **more: object,
) -> gradio.events.Dependency:
    """Bind an event: the fields of `inputs` become arguments of these names, for who calls by HTTP too. slow: it takes
    one of the places that answers share.

    Values reach `work` as they came: a widget's own check of what is no value of it would end in a traceback.
    """
    limits: dict[str, object] = {"preprocess": False, "show_progress": "full" if slow else "hidden"}
    limits |= {"concurrency_id": "answers", "concurrency_limit": TOGETHER} if slow else {"queue": False}
    name = {"api_name": api_name} if api_name else {"api_visibility": "private"}
    return listen(work, None, outputs, inputs_kwargs=inputs, **name, **limits, **more)


def _pieces(conversation: Conversation, *request: Any) -> Iterator:
    """conversation.respond with what it refuses shown to the reader, in one line."""
    try:
        yield from conversation.respond(*request)
    except Exception as error:
        raise _refusal(str(error)) from None


def _told(function: Callable[..., str], *values: object) -> str:
    try:
        return function(*values)
    except Exception as error:
        raise _refusal(str(error)) from None


def _refusal(line: str) -> gradio.Error:
    return gradio.Error(line, print_exception=False, duration=20)


def _messages(turns: Turns) -> list[dict]:
    return [
        {"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn) if text
    ]


def _plain(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    return "".join(f"\\{character}" if character in r"\`*_{}[]<>()#+!|~$" else character for character in text)


def serve(
    page: gradio.Blocks,
    server_name: str,
    server_port: int,
    share: bool,
    users: list[tuple[str, str]],
    in_front: dict[str, object],
) -> None:
    """Open the page and stay until the process ends. server_port 0: Gradio's usual 7860, or the next free one.

    users: (name, password) of those who may log in, [] for no login; in_front: see utils.gate. Raises OSError where
    the port is taken, KeyboardInterrupt, and on a shared page SystemExit (128 + n) for a signal that asks for the end.
    """
    for name in ("no_proxy", "NO_PROXY"):  # Gradio asks its own page before it is ready: not by way of a proxy
        os.environ[name] = ",".join([*filter(None, [os.environ.get(name)]), "localhost", "127.0.0.1", server_name])
    page.queue(max_size=WAITING, default_concurrency_limit=TOGETHER, api_open=False)  # nobody passes the queue by
    try:
        page.launch(
            server_name=f"[{server_name}]" if ":" in server_name else server_name,  # as in an address
            server_port=server_port or None,
            share=share,
            auth=users or None,
            i18n=texts(),
            app_kwargs={**in_front, "docs_url": None, "redoc_url": None, "openapi_url": None},
            max_file_size="1kb",
            root_path="",
            allowed_paths=[],
            state_session_capacity=1000,
            strict_cors=True,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            run_history=False,
            footer_links=[],
            show_error=False,
            quiet=True,  # it would advertise share=True
            prevent_thread_lock=True,
        )
    except OSError as error:
        if error.errno is None:  # Gradio's own, when it has found no port
            raise OSError(errno.EADDRINUSE, "", f"port {server_port or '7860 and those behind it'}") from None
        raise
    if users:
        where = "everybody with its address" if page.share_url else f"whoever reaches {server_name}"
        print(f"the page is open to {where}, behind a login of {len(users)} users")
    print(f"the page is at {page.local_url} (Ctrl-C ends it)", flush=True)
    _stay(page)


def _stay(page: gradio.Blocks) -> None:
    """Until a signal. The tunnel of a shared page is a process of its own, which ends when Python ends in order."""
    if page.share_url:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    threading.Event().wait()
