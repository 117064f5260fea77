"""Small questions over HTTP, without a library whose own cost would be part of the figure."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any


class Client:
    """One keep-alive connection. ``headers`` are sent with every request."""

    def __init__(self, port: int, headers: Mapping[str, str]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._headers = dict(headers)

    def ask(self, method: str, path: str, document: Any = None, **headers: str) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body and fields (names in lower case) of the answer. Raises OSError and http.client.HTTPException."""
        body = None if document is None else json.dumps(document).encode()
        extra = {} if body is None else {"Content-Type": "application/json"}
        self._connection.request(method, path, body, {**self._headers, **extra, **headers})
        answer = self._connection.getresponse()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, answer.read(), fields

    def close(self) -> None:
        self._connection.close()


def status(port: int, path: str, headers: Sequence[str] = ()) -> int:
    """The status of the answer to a GET on a new connection, 0 when there is none. ``headers``: "Name: value"."""
    pairs = (header.partition(": ") for header in headers)
    client = Client(port, {name: value for name, _, value in pairs})
    try:
        return client.ask("GET", path)[0]
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        client.close()


def answers(port: int, path: str, headers: Sequence[str] = ()) -> bool:
    """Whether a GET is answered with 200."""
    return status(port, path, headers) == 200
