"""What stands in front of the page: host names that are not ours and bodies that no message has are turned away."""

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

MOST_BYTES = 2_000_000  # of a request: the longest message, six bytes a character, with its conversation's settings
LOOPBACK = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::")


def middleware(server_name: str, share: bool) -> list[Middleware]:
    """For gradio's app. A page in the browser of a user cannot reach this one under a name of its own making."""
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=_hosts(server_name, share), www_redirect=False),
        Middleware(SmallBodies),
    ]


def _hosts(server_name: str, share: bool) -> list[str]:
    if server_name in EVERYWHERE:
        return ["*"]  # behind a login, under names that only the network knows
    names = [*LOOPBACK, server_name, *(["*.gradio.live"] if share else [])]
    return [name for name in names if ":" not in name] + ["["] * any(":" in name for name in (server_name,))


class SmallBodies:
    """Refuses (413) a body of more than MOST_BYTES: at once where its length is told, else when so much has come."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        """One request."""
        told = dict(scope.get("headers") or []).get(b"content-length", b"0")
        if scope["type"] == "http" and told.isdigit() and int(told) > MOST_BYTES:
            await PlainTextResponse("too large", 413)(scope, receive, send)
            return
        taken = 0

        async def counted() -> dict:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            return message if taken <= MOST_BYTES else {"type": "http.disconnect"}

        await self.app(scope, counted, send)
