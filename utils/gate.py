"""What stands in front of the page: host names that are not ours and bodies that no message has are turned away."""

import sys

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

MOST_BYTES = 2_000_000  # of a request: the longest message, six bytes a character, with its conversation's settings
EVERYWHERE = ("0.0.0.0", "::")


def middleware(server_name: str, share: bool) -> list[Middleware]:
    """For gradio's app. A page in the browser of a user cannot reach this one under a name of its own making."""
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=_hosts(server_name, share), www_redirect=False),
        Middleware(Guard),
    ]


def _hosts(server_name: str, share: bool) -> list[str]:
    if server_name in EVERYWHERE:
        return ["*"]  # behind a login, under names that only the network knows
    name = f"[{server_name}]" if ":" in server_name else server_name  # as in an address
    return ["localhost", "127.0.0.1", name, *(["*.gradio.live"] if share else [])]


class Guard:
    """Refuses (413) a body of more than MOST_BYTES: at once where its length is told, else when so much has come. What
    fails behind it is answered (500), with one line on our own screen: Gradio would close the connection."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
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
