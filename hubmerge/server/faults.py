"""Failures on purpose, so that clients can be rehearsed: what a plan says, and how it is done.

A plan is a list of faults in YAML. Each has a pattern of requests, and applies to the first `times`
of those that it matches, after the first `after`:

    - {request: "POST .*/commit/", fault: status, status: 503, retry_after: 30, times: 2}
    - {request: "PUT /lfs/", fault: reset}
    - {request: "POST .*/commit/", fault: quota, limit: 128, seconds: 3600}
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hubmerge.errors import UsageError
from hubmerge.validation_errors import describe_value_problem

_MAX_PLAN_BYTES = 1 << 20


class Fault(BaseModel):
    """One failure.

    quota     once `limit` requests were done in `seconds`, answer with 429 until one may be done
    status    answer with `status`, `message` and, in seconds, `retry_after`
    redirect  answer with 302 to `to`
    reset     break the connection before the request is done
    lose      do the request, and break the connection instead of answering
    hang      accept the request and never answer
    drip      send one byte of the answer every `delay` seconds
    truncate  send half of the answer
    flip      change one bit of the answer
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    request: str
    fault: Literal[
        "status", "quota", "redirect", "reset", "lose", "hang", "drip", "truncate", "flip"
    ]
    times: Annotated[int, Field(ge=1)] | None = 1
    after: Annotated[int, Field(ge=0)] = 0
    status: Annotated[int, Field(ge=400, le=599)] = 503
    message: str = "The fault plan says so."
    retry_after: Annotated[float, Field(ge=0)] | None = None
    to: str = ""
    delay: Annotated[float, Field(ge=0)] = 1.0
    limit: Annotated[int, Field(ge=1)] = 128
    seconds: Annotated[float, Field(gt=0)] = 3600.0

    @field_validator("request")
    @classmethod
    def _check_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return pattern


def read_fault_plan(path: Path) -> list[Fault]:
    """The faults of a file; raises UsageError with all problems."""
    try:
        with path.open("rb") as file:
            value = yaml.safe_load(file.read(_MAX_PLAN_BYTES))
        return TypeAdapter(list[Fault]).validate_python(value)
    except ValidationError as error:
        problems = [
            describe_value_problem(problem, ".".join(map(str, problem["loc"])))
            for problem in error.errors()
        ]
        raise UsageError(f"{path} is no fault plan: {'; '.join(problems)}.") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} cannot be read as a fault plan: {reason}.") from error


@dataclass
class _Planned:
    """A fault, how many requests it has matched, and when those of a quota were done."""

    fault: Fault
    pattern: re.Pattern[str]
    matched: int = field(default=0)
    done: deque[float] = field(default_factory=deque)

    def applies(self, request: str, now: float) -> Fault | None:
        """The fault to do with a request, None if there is none for it."""
        if not self.pattern.search(request):
            return None
        if self.fault.fault == "quota":
            return self._quota_left(now)
        self.matched += 1
        number = self.matched - self.fault.after
        is_due = number > 0 and (self.fault.times is None or number <= self.fault.times)
        return self.fault if is_due else None

    def _quota_left(self, now: float) -> Fault | None:
        """The refusal if the quota is used up; else the request counts."""
        fault = self.fault
        while self.done and self.done[0] <= now - fault.seconds:
            self.done.popleft()
        if len(self.done) < fault.limit:
            self.done.append(now)
            return None
        wait_s = math.ceil(self.done[0] + fault.seconds - now)
        message = f"{fault.limit} requests in {fault.seconds:g} seconds are allowed"
        return fault.model_copy(
            update={"fault": "status", "status": 429, "message": message, "retry_after": wait_s}
        )


class FaultMiddleware:
    """Does what a plan says with each request: "METHOD /path?query"; the first fault counts.

    `now` is the time in seconds, for quotas.
    """

    def __init__(
        self, app: ASGIApp, faults: Sequence[Fault], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._now = app, now
        self._planned = [_Planned(fault, re.compile(fault.request)) for fault in faults]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._next_fault(scope) if scope["type"] == "http" else None
        if fault is None:
            await self._app(scope, receive, send)
        elif fault.fault == "status":
            await _response(fault)(scope, receive, send)
        elif fault.fault == "redirect":
            await RedirectResponse(fault.to, 302)(scope, receive, send)
        elif fault.fault == "reset":
            await _reset(send)
        elif fault.fault == "hang":
            while (await receive())["type"] != "http.disconnect":
                pass
        elif fault.fault == "lose":
            await self._app(scope, receive, _discard)
            await _reset(send)
        else:
            await self._app(scope, receive, _damaged(fault, send))

    def _next_fault(self, scope: Scope) -> Fault | None:
        query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
        request = f"{scope['method']} {scope['raw_path'].decode('latin-1')}{query}"
        # Every fault counts its requests, whichever is done.
        found = [planned.applies(request, self._now()) for planned in self._planned]
        return next(filter(None, found), None)


def _response(fault: Fault) -> JSONResponse:
    headers = (
        {} if fault.retry_after is None else {"Retry-After": str(math.ceil(fault.retry_after))}
    )
    return JSONResponse({"error": fault.message}, fault.status, headers)


async def _discard(message: Message) -> None:
    pass


def _damaged(fault: Fault, send: Send) -> Send:
    """A `send` that damages the first piece of a body that is long enough."""
    is_done = False

    async def send_damaged(message: Message) -> None:
        nonlocal is_done
        body = message.get("body", b"")
        if is_done or message["type"] != "http.response.body" or not body:
            await send(message)
        elif fault.fault == "drip":
            for number in range(len(body)):
                await send({**message, "body": body[number : number + 1], "more_body": True})
                await asyncio.sleep(fault.delay)
            await send({**message, "body": b""})
        elif fault.fault == "flip":
            is_done, middle = True, len(body) // 2
            await send(
                {**message, "body": body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]}
            )
        else:
            is_done = True
            await send({**message, "body": body[: len(body) // 2], "more_body": True})
            await _reset(send)

    return send_damaged


async def _reset(send: Send) -> None:
    """Break the connection at once, which ASGI has no message for."""
    transport = cast(Any, send).__self__.transport  # `send` is a method of uvicorn's
    linger = struct.pack("ii", 1, 0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()
    await asyncio.sleep(0)  # uvicorn learns of it
    await asyncio.sleep(0)
