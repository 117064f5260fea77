"""The agent's end of the socket, for tests of workers: hands out the records that the test gives it, and no others."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from core.faults import GatewayFault
from core.wire import KINDS, FrameReader, Message, encode
from tests.gateway_process import eventually

TICK_S = 0.2
TIMEOUT_S = 10.0
Answerer = Callable[[str, dict[str, Any]], dict[str, Any]]


def _nothing_known(name: str, params: dict[str, Any]) -> dict[str, Any]:
    raise AssertionError(f"nobody said how to answer {name} {params}")


class Feed:
    """Serves any number of workers. `put` and `drop` return when all that are connected have acknowledged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in KINDS}
        self._revision = 1
        self._acknowledged: dict[socket.socket, int] = {}
        self._lock = threading.Condition()  # of what is above; notified when a worker acknowledges or goes
        self._listener: socket.socket | None = None
        self.is_ticking = True
        self.heard: list[Message] = []
        self.answerer: Answerer = _nothing_known  # of calls; may raise GatewayFault

    # --- life ---
    def start(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        threading.Thread(target=self._tick, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """As if the agent were killed."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._path.unlink(missing_ok=True)
        for worker in list(self._acknowledged):
            with suppress(OSError):
                worker.shutdown(socket.SHUT_RDWR)
        eventually(lambda: not self._acknowledged, TIMEOUT_S, "the end of the workers' connections")

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                worker, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(worker,), daemon=True).start()

    def _tick(self, listener: socket.socket) -> None:
        while self._listener is listener:
            if self.is_ticking:
                with self._lock:
                    self._say(self._now())
            time.sleep(TICK_S)

    def _serve(self, worker: socket.socket) -> None:
        frames = FrameReader()
        with worker:
            try:
                while data := worker.recv(65536):
                    for message in frames.feed(data):
                        self._take(worker, message)
            except OSError:
                pass
            with self._lock:
                self._acknowledged.pop(worker, None)
                self._lock.notify_all()

    # --- configuration ---
    def put(self, kind: str, *records: dict[str, Any]) -> None:
        with self._lock:
            self._records[kind] |= {record["id"]: record for record in records}
            self._change({kind: list(records)}, {})
            self._wait()

    def drop(self, kind: str, *ids: str) -> None:
        with self._lock:
            for id in ids:
                del self._records[kind][id]
            self._change({}, {kind: list(ids)})
            self._wait()

    def tell(self, message: Message) -> None:
        """Something beside the configuration; returns when all workers have taken it."""
        with self._lock:
            self._say(message)
            self._change({}, {})
            self._wait()

    def records(self, kind: str) -> dict[str, dict[str, Any]]:
        """By id, the newest last."""
        return self._records[kind]

    def _change(self, put: dict[str, Any], drop: dict[str, Any]) -> None:
        self._revision += 1
        self._say({"type": "delta", "revision": self._revision, "token": "t", "put": put, "drop": drop})

    def _wait(self) -> None:
        revision = self._revision
        is_applied = self._lock.wait_for(
            lambda: all(each >= revision for each in self._acknowledged.values()), TIMEOUT_S
        )
        assert is_applied, f"revision {revision} was not acknowledged"

    def wait_for_worker(self) -> None:
        """Until a worker is connected and has the configuration as it is."""
        with self._lock:
            is_applied = self._lock.wait_for(lambda: self._revision in self._acknowledged.values(), TIMEOUT_S)
        assert is_applied, "no worker has taken the configuration"

    def full_load(self) -> list[Message]:
        at = {"revision": self._revision, "token": "t"}
        slices = [
            {"type": "records", "kind": kind, "records": list(records.values())}
            for kind, records in self._records.items()
        ]
        return [{"type": "reset", **at}, *slices, {"type": "commit", **at, "as_of": time.time()}]

    # --- messages ---
    def _now(self) -> Message:
        return {"type": "tick", "revision": self._revision, "as_of": time.time()}

    def _say(self, message: Message) -> None:
        for worker in list(self._acknowledged):
            with suppress(OSError):
                worker.sendall(encode(message))

    def _take(self, worker: socket.socket, message: Message) -> None:
        self.heard.append(message)
        if message["type"] == "join":
            with self._lock:
                now = [self._now()] if self.is_ticking else []
                worker.sendall(b"".join(map(encode, self.full_load() + now)))
                self._acknowledged[worker] = 0
        elif message["type"] == "ack":
            with self._lock:
                self._acknowledged[worker] = message["revision"]
                self._lock.notify_all()
        elif message["type"] == "call":
            worker.sendall(encode({"type": "reply", "id": message["id"], **self._reply(message)}))

    def _reply(self, call: Message) -> dict[str, Any]:
        try:
            return {"result": self.answerer(call["name"], call["params"])}
        except GatewayFault as fault:
            wire = {"code": fault.code, "detail": fault.detail, "members": dict(fault.members)}
            return {"fault": {**wire, "retry_after_s": fault.retry_after_s}}
