"""The gateway under any ASGI server: ``uvicorn gateway_project.asgi:application``.

The serving process loads no Django. At startup it asks a subprocess for its settings and starts an agent and a control
process of its own; further server processes of the same VAR_DIR share them. The events worker is a service apart:
``celery -A gateway_project.celery_app worker -Q gateway.events``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gateway_project import companions
from gateway_project.dataplane.app import Gateway, Receive, Scope, Send
from gateway_project.dataplane.settings import WorkerSettings
from gateway_project.processes import ROOT, KeptProcess

logger = logging.getLogger("portcullis")
START_TIMEOUT_S = 60.0
MAX_SLOTS = 512


class StartFailed(Exception):
    """``str()`` is what the server logs."""


class Application:
    """Starts at the server's lifespan startup, stops at its shutdown, and is the data plane in between."""

    def __init__(self) -> None:
        self._gateway: Gateway | None = None
        self._companions: list[KeptProcess] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._slot_lock: int | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self._gateway is None:
            raise RuntimeError("the gateway needs a server with the lifespan protocol, which starts it")
        else:
            await self._gateway(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start()
        except Exception as error:
            await self._stop()
            await send({"type": "lifespan.startup.failed", "message": f"portcullis: {error}"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        settings = await ask_for_settings()
        slot, self._slot_lock = claim_slot(Path(settings.agent_socket).parent)
        if slot == 0:
            await self._start_companions(settings)
        self._gateway = Gateway(replace(settings, slot=slot))
        await self._gateway.startup()
        with contextlib.suppress(TimeoutError):  # then requests are 503 until there is a configuration
            async with asyncio.timeout(START_TIMEOUT_S):
                while not self._gateway.has_snapshot:  # noqa: ASYNC110 - the data plane tells nobody else
                    await asyncio.sleep(0.05)

    async def _start_companions(self, settings: WorkerSettings) -> None:
        specs = (companions.control(Path(settings.control_socket)), companions.agent(Path(settings.agent_socket)))
        self._companions = [KeptProcess(spec, logger.warning) for spec in specs]
        self._tasks = [asyncio.create_task(kept.run()) for kept in self._companions]
        ready = asyncio.create_task(self._companions_are_ready())
        done, _ = await asyncio.wait({ready, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        for task in done:
            task.result()  # raises CrashLoop

    async def _companions_are_ready(self) -> None:
        for kept in self._companions:
            await kept.was_ready.wait()

    async def _stop(self) -> None:
        if self._gateway is not None:
            await self._gateway.shutdown()
            self._gateway = None
        for kept in self._companions:  # the agent last
            await kept.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._companions, self._tasks = [], []
        if self._slot_lock is not None:
            os.close(self._slot_lock)
            self._slot_lock = None


async def ask_for_settings(
    command: Sequence[str] = (sys.executable, "manage.py", "workersettings"),
) -> WorkerSettings:
    """Raises StartFailed with the sentence that the command has written to its standard error."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines() or ["the settings cannot be read"]
        raise StartFailed(lines[-1].removeprefix("portcullis: "))
    return WorkerSettings.from_json(output)


def claim_slot(var_dir: Path) -> tuple[int, int]:
    """The lowest slot that no other process of this directory has, and the descriptor that keeps it until it is closed.
    Slot 0 is the one that a supervisor would hold. Raises StartFailed."""
    for slot in range(MAX_SLOTS):
        path = var_dir / ("gateway.lock" if slot == 0 else f"slot-{slot}.lock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            return slot, descriptor
    raise StartFailed(f"{MAX_SLOTS} processes share {var_dir} already")


application = Application()
