"""The last good snapshot, as the agent keeps it."""

import asyncio
import time
from pathlib import Path

import pytest

from core.wire import encode
from gateway_project.agent.snapshot_file import SnapshotKeeper
from gateway_project.agent.store import ConfigStore, Position
from gateway_project.dataplane.snapshot_file import write_snapshot_file
from tests.links import until


def store_at(position: Position, as_of: float) -> ConfigStore:
    """One that the database has confirmed at that time."""
    store = ConfigStore()
    store.start_from(position, store.records, as_of)
    store.is_ready = True
    return store


def kept(path: Path) -> tuple[Position, float]:
    store = ConfigStore()
    SnapshotKeeper(store, path, 1000.0).start_store()
    return store.position, store.as_of


def test_a_clock_that_was_set_back_does_not_keep_news_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.bin"
    now = time.time()
    write_snapshot_file(path, store_at(Position(7, "t"), now + 86_400).full_load())

    async def scenario() -> None:
        store = ConfigStore()
        keeper = SnapshotKeeper(store, path, 1000.0)
        keeper.start_store()
        store.apply([(Position(8, "u"), frozenset())], store.records, {})
        store.as_of, store.is_ready = now, True
        running = asyncio.create_task(keeper.run())
        await until(lambda: kept(path) == (Position(8, "u"), now))
        running.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "frame",
    [
        encode({"type": "records", "kind": "spaceship", "records": []}),
        encode({"type": "records", "kind": "service", "records": [5]}),
        encode({"type": "commit"}),
        b"\x00\x00\x00\x01{",
    ],
)
def test_a_file_that_cannot_be_understood_is_no_file(tmp_path: Path, frame: bytes) -> None:
    path = tmp_path / "snapshot.bin"
    write_snapshot_file(path, [frame])
    assert kept(path) == (Position(), 0.0)
