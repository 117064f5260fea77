"""Upstreams for tests of the cache: each answers what the test says, and counts what reached it."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from tests.dataplane import DataPlane
from tests.raw_http import Answer
from tests.scripted_upstream import Peer, Script, Seen, Upstream

Reply = bytes | Callable[[Seen], bytes]


def reply(*fields: str, status: str = "200 OK", body: bytes = b"stored", age_s: float = 0.0) -> bytes:
    """An answer of an upstream. It was made ``age_s`` ago."""
    date = formatdate(time.time() - age_s, usegmt=True)
    head = [f"HTTP/1.1 {status}", f"Date: {date}", *fields]
    if not status.startswith(("204", "304")):
        head.append(f"Content-Length: {len(body)}")
    else:
        body = b""
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def answering(*replies: Reply) -> Script:
    """The replies in the order of requests, whatever connection they come on; the last one goes on for ever."""
    count = iter(range(10**9))

    def script(peer: Peer) -> None:
        while (seen := peer.read_request()) is not None:
            number = next(count)
            each = replies[min(number, len(replies) - 1)]
            peer.send(each if isinstance(each, bytes) else each(seen))

    return script


def cached(plane: DataPlane, *replies: Reply, **policy: Any) -> Upstream:
    """A service with a caching policy."""
    return plane.serve(answering(*replies), policies={"caching": policy})


def cached_script(plane: DataPlane, script: Script, **policy: Any) -> Upstream:
    return plane.serve(script, policies={"caching": policy})


def status_of(answer: Answer) -> str:
    """What the cache says it did."""
    said = answer.field("cache-status") or ""
    assert said.startswith("portcullis; "), said
    return said.removeprefix("portcullis; ")


def is_hit(answer: Answer) -> bool:
    return status_of(answer).startswith("hit")


class Purger:
    """What an agent would tell. One for all tests, which may share a worker: numbers only grow."""

    number = 0

    def __call__(self, plane: DataPlane, kind: str, value: str = "") -> None:
        self.number += 1
        rules = [[self.number, kind, value]]
        plane.feed.tell({"type": "purges", "number": self.number, "whole": False, "rules": rules})


purge = Purger()
