"""An id for every request: in the response, and in the log if the request failed."""

from __future__ import annotations

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADER = b"x-request-id"
_SENT_AS = (_HEADER, b"x-amzn-trace-id")  # the second is what huggingface_hub sends
_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")


class RequestIds:
    """Adds X-Request-Id to all responses, those of failures too: the client's, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        sent = next((headers[name] for name in _SENT_AS if name in headers), b"")
        id = sent if _ID.fullmatch(sent) else uuid.uuid4().hex.encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (_HEADER, id)]}
            await send(message)

        scope = {**scope, "state": {**scope.get("state", {}), "request_id": id.decode()}}
        await self.app(scope, receive, send_with_id)
