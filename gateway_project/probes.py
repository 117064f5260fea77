"""How the supervisor learns that one of its processes is ready. No Django."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import orjson

_TIMEOUT_S = 2.0
_MAX_ANSWER = 65536
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


async def worker_is_ready(bind: str, port: int, pid: int) -> bool:
    """The workers share the port: ``/ready`` is asked again on new connections until this very process answers 200."""
    status, body = await _get(asyncio.open_connection(_ANYWHERE.get(bind, bind), port), "/ready")
    return status == 200 and body.get("pid") == pid


async def http_answers(path: Path) -> bool:
    """Whether somebody speaks HTTP on a Unix socket."""
    status, _ = await _get(asyncio.open_unix_connection(path), "/health")
    return status > 0


async def accepts(path: Path) -> bool:
    """Whether somebody listens on a Unix socket."""
    with contextlib.suppress(OSError, TimeoutError):
        _, writer = await asyncio.wait_for(asyncio.open_unix_connection(path), _TIMEOUT_S)
        writer.close()
        return True
    return False


async def _get(connecting: Any, target: str) -> tuple[int, dict[str, Any]]:
    """(status, JSON object of the body or {}); status 0 when there was no answer."""
    try:
        reader, writer = await asyncio.wait_for(connecting, _TIMEOUT_S)
    except (OSError, TimeoutError):
        return 0, {}
    try:
        writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(_MAX_ANSWER), _TIMEOUT_S)
    except (OSError, TimeoutError):
        return 0, {}
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    parts = head.split(b" ", 2)
    status = int(parts[1]) if len(parts) > 2 and parts[1].isdigit() else 0
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = {}
    return status, document if isinstance(document, dict) else {}
