"""What stands in front of the page: host names that are not ours, bodies that no message has, addresses that the page
does not use, and whoever comes while the queue is full are turned away."""

import re
import sys

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse

MOST_BYTES = 2_000_000  # of a request: the longest message, six bytes a character, with its conversation's settings
POSTS = re.compile(r"(/login|/gradio_api/(queue/join|cancel|reset|(call|run|api)/.+))/?")  # no uploads, no recordings
EVERYWHERE = ("0.0.0.0", "::")
BUSY = "正忙：排队的人太多，请稍后再试。Busy: too many are waiting, please try again in a moment."


def in_front(server_name: str, share: bool) -> dict[str, object]:
    """Arguments of gradio's app. A page in the browser of a user cannot reach this one under a name of its own making;
    a full queue is told in the page's two languages."""
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=_hosts(server_name, share), www_redirect=False),
        Middleware(Guard),
    ]
    return {"middleware": middleware, "exception_handlers": {503: _busy}}


async def _busy(request: Request, error: Exception) -> JSONResponse:
    """429: for 503, which is Gradio's answer when its queue is full, its page has an English text of its own."""
    return JSONResponse({"detail": BUSY}, 429)


def _hosts(server_name: str, share: bool) -> list[str]:
    if server_name in EVERYWHERE:
        return ["*"]  # behind a login, under names that only the network knows
    name = f"[{server_name}]" if ":" in server_name else server_name  # as in an address
    return ["localhost", "127.0.0.1", name, *(["*.gradio.live"] if share else [])]


class Guard:
    """Refuses what the page never posts to (404), and a body of more than MOST_BYTES (413): at once where its length is
    told, else when so much has come. What fails behind it is answered (500), with one line on our own screen: Gradio
    would close the connection."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not POSTS.fullmatch(scope["path"]):
            await PlainTextResponse("no such address", 404)(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > MOST_BYTES:
            await PlainTextResponse("too large", 413)(scope, receive, send)
            return
        taken, has_started = 0, False

        async def counted() -> dict:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            return message if taken <= MOST_BYTES else {"type": "http.disconnect"}

        async def noted(message: dict) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except Exception as error:
            print(f"a request failed: {scope['path']!r}: {type(error).__name__}", file=sys.stderr)
            if not has_started:
                await PlainTextResponse("the request failed", 500)(scope, receive, send)
