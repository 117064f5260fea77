"""A worker's link to an agent, for tests: with a scripted agent, or with a real one."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.wire import FrameReader, Message, encode
from gateway_project.dataplane.agent_link import AgentLink
from gateway_project.dataplane.settings import WorkerSettings
from gateway_project.worker_settings import worker_settings

DEADLINE_S = 60.0


def link_settings(directory: Path, slot: int = 0) -> WorkerSettings:
    settings = worker_settings(slot)
    return replace(settings, agent_socket=str(directory / "agent.sock"), snapshot_path=str(directory / "snapshot.bin"))


def new_link(directory: Path, slot: int = 0) -> AgentLink:
    return AgentLink(link_settings(directory, slot))


async def until(condition: Callable[[], Any], timeout_s: float = DEADLINE_S) -> Any:
    """The first true value of ``condition()``, asked at every turn or so of the loop."""
    async with asyncio.timeout(timeout_s):
        while not (value := condition()):
            await asyncio.sleep(0.005)
    return value


class ScriptedAgent:
    """Accepts one worker at a time, keeps what it says, and says what the test tells it to."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "agent.sock"
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> "ScriptedAgent":
        self._server = await asyncio.start_unix_server(self._accept, self._path)
        return self

    async def stop(self) -> None:
        self.hang_up()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        self._path.unlink(missing_ok=True)

    def hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def say(self, *messages: Message) -> None:
        assert self._writer is not None
        for message in messages:
            self._writer.write(encode(message))

    async def hears(self, kind: str) -> Message:
        """The next message of a kind; others before it are passed over."""
        async with asyncio.timeout(DEADLINE_S):
            while (message := await self.heard.get())["type"] != kind:
                pass
            return message

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        frames = FrameReader()
        while data := await reader.read(65536):
            for message in frames.feed(data):
                self.heard.put_nowait(message)
        writer.close()


def full_load(revision: int, token: str = "t", **records: list[dict[str, Any]]) -> list[Message]:
    at = {"revision": revision, "token": token}
    slices = [{"type": "records", "kind": kind, "records": wires} for kind, wires in records.items()]
    return [{"type": "reset", **at}, *slices, {"type": "commit", **at, "as_of": 1.0}]


def delta(revision: int, token: str = "t", drop: dict[str, list[str]] | None = None, **put: Any) -> Message:
    return {"type": "delta", "revision": revision, "token": token, "put": put, "drop": drop or {}}


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
