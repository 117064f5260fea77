"""Whatever comes through the agent's socket, it ends that connection at most."""

import asyncio
import struct
from pathlib import Path
from typing import Any

import pytest

from core.wire import encode
from gateway_project.agent.writer import Writer
from tests.agents import Bench, Play, play_in
from tests.links import until

pytestmark = pytest.mark.django_db(transaction=True)

JOIN: dict[str, Any] = {"type": "join", "slot": 7, "pid": 1, "revision": 0, "token": ""}


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


NONSENSE = {
    "a frame of 2 GiB": struct.pack(">I", 2**31),
    "no JSON": framed(b"\xff\xfe"),
    "a list": framed(b"[1]"),
    "no type": framed(b"{}"),
    "depths": framed(b"[" * 100_000),
    "a slot that is text": encode(JOIN | {"slot": "x"}),
    "a slot beyond its column": encode(JOIN | {"slot": 2**40}),
    "a revision that is text": encode(JOIN | {"revision": "5"}),
    "a negative revision": encode(JOIN | {"revision": -1}),
    "problems that are a number": encode(JOIN) + encode({"type": "ack", "revision": 1, "problems": 5}),
    "problems that are texts": encode(JOIN) + encode({"type": "ack", "revision": 1, "problems": ["x"]}),
    "uses in a list": encode(JOIN) + encode({"type": "used", "rows": ["key_1"]}),
    "a use at the end of time": encode(JOIN) + encode({"type": "used", "rows": [["key_1", "", 1, 1e300]]}),
    "a use that is text": encode(JOIN) + encode({"type": "used", "rows": [["key_1", "", 1, "now"]]}),
    "counters that are texts": encode(JOIN) + encode({"type": "metrics", "counters": [["a", {}, "x"]]}),
    "labels that are a number": encode(JOIN) + encode({"type": "metrics", "counters": [["a", 5, 1]]}),
    "callers that are no rows": encode(JOIN) + encode({"type": "version_uses", "rows": [5]}),
    "a caller without a time": encode(JOIN)
    + encode({"type": "version_uses", "rows": [["s", "v", "a", "k", 1, None, "x"]]}),
    "a negative number of requests": encode(JOIN)
    + encode({"type": "version_traffic", "rows": [["s", "v", "", -1, 0, [0] * 66]]}),
    "a histogram of another form": encode(JOIN)
    + encode({"type": "version_traffic", "rows": [["s", "v", "", 1, 0, [1]]]}),
    "a use of a limit that is text": encode(JOIN)
    + encode({"type": "limit_uses", "rows": [["lim_1", "key:a", "x", 0, 0, False]]}),
    "a violation without a count": encode(JOIN)
    + encode({"type": "violations", "rows": [["", "lim_1", "burst", "a", "", "", None, True]]}),
    "a violation of a name beyond its column": encode(JOIN)
    + encode({"type": "violations", "rows": [["", "l" * 61, "burst", "a", "", "", 1, True]]}),
    "a call without an id": encode({"type": "call"}),
}


@pytest.fixture
def play(tmp_path: Path, settings: Any) -> Play:
    return play_in(tmp_path, settings)


def test_nonsense_ends_its_connection_and_nothing_else(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        async with bench.joined() as (agent, link):
            for what, data in NONSENSE.items():
                reader, writer = await asyncio.open_unix_connection(str(bench.var_dir / "agent.sock"))
                writer.write(data)
                async with asyncio.timeout(10):
                    while await reader.read(65536):
                        pass
                writer.close()
                assert link.is_connected, what
            await until(lambda: len(agent.server.peers) == 1)
            await agent.writer.beat()
            await agent.writer.flush()
            assert agent.metrics.text()

    play(scenario)


def test_what_is_no_time_is_no_use() -> None:
    writer = Writer("node", list)
    with pytest.raises(ValueError, match="no time"):
        writer.used([["key_1", "", 1, float("nan")]])
