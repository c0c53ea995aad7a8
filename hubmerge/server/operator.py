"""Requests of the user who runs the Hub, without the client library."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from hubmerge.errors import HubError, HubUnreachable
from hubmerge.server.state import ServerState


def send_request(
    server: ServerState, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The JSON object with which a Hub answers; raises HubError with its reason."""
    # http.client, because it uses no proxy for loopback. A Hub may count for minutes.
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    headers = {"Authorization": f"Bearer {server.token}"}
    try:
        connection.request(method, path, json.dumps(body or {}), headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise HubUnreachable(
            f"The Hub at {server.url} does not answer: {error}.", "Run the same command again."
        ) from error
    finally:
        connection.close()
    if response.status >= 400:
        raise HubError(f"The Hub refused: {answer.get('error')}")
    return dict(answer)
