"""How much a page accepts from browsers."""

import os
from pathlib import Path

from starlette.responses import PlainTextResponse

MOST_AT_ONCE = 25_000_000  # bytes of one request, whatever files it holds
MOST_IN_ALL = 500_000_000  # bytes of everything that was uploaded and not deleted yet


class UploadLimits:
    """Refuses requests that are too long while they come in, and uploads for which there is no room."""

    def __init__(self, app):
        """Takes the application that is served."""
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        """Passes a request on, or answers 413 or 507."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MOST_AT_ONCE:
            return await _refuse(413, scope, receive, send)
        if scope["path"].endswith("/upload") and _held() > MOST_IN_ALL:
            return await _refuse(507, scope, receive, send)
        came = 0

        async def counted():
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            # Without a length that was said, what is too long ends as if the browser had gone.
            return {"type": "http.disconnect"} if came > MOST_AT_ONCE else message

        await self.app(scope, counted, send)


def _held() -> int:
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


async def _refuse(status: int, scope, receive, send) -> None:
    said = {413: "this request is too long: pictures have at most 20 MB", 507: "too much was uploaded: try again later"}
    await PlainTextResponse(said[status], status)(scope, receive, send)
