"""Runs the processes of a host: starts them together, stops them in order, rolls the workers, says what happens.

SIGTERM or SIGINT stops stage after stage: the workers drain first, while control and agent still serve them, and the
agent goes last. A second one stops everything at once. SIGHUP replaces the workers one at a time; SIGUSR1
lets them open the access log anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from gateway_project.processes import CrashLoop, KeptProcess, ProcessSpec, Say

ROLL_TIMEOUT_S = 30.0  # for a new worker to become ready, else the old one stays


def say(text: str) -> None:
    """One line for whoever watches."""
    with contextlib.suppress(OSError, ValueError):  # nobody reads us any more, which is no reason to stop
        print(f"portcullis  {text}", flush=True)


class Supervisor:
    """``stages`` are started together and stopped one after the other; the first are the workers that SIGHUP rolls.

    ``state_path`` is kept up to date: ``{"supervisor": pid, "processes": {name: {"pid", "ready"}}}``.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[ProcessSpec]],
        state_path: Path,
        when_ready: Callable[[], Awaitable[None]],
        say: Say = say,
    ) -> None:
        self._say = say
        self._stages = [[KeptProcess(spec, say, self._write_state) for spec in stage] for stage in stages]
        self._state_path = state_path
        self._when_ready = when_ready
        self._stop = asyncio.Event()
        self._roll: asyncio.Task[None] | None = None
        self._has_terminal = sys.stdin is not None and sys.stdin.isatty()

    @property
    def processes(self) -> list[KeptProcess]:
        return [kept for stage in self._stages for kept in stage]

    async def run(self) -> None:
        """Returns when a signal has stopped everything. Raises `CrashLoop`, with everything stopped, when a process
        cannot start."""
        self._handle_signals()
        runs = [asyncio.create_task(kept.run()) for kept in self.processes]
        announcement = asyncio.create_task(self._announce())
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({stop, *runs}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            announcement.cancel()
            stop.cancel()
            await self._shut_down()
            for task in runs:  # whoever waits to start something again
                task.cancel()
        results = await asyncio.gather(*runs, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_stop)
        loop.add_signal_handler(signal.SIGINT, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        loop.add_signal_handler(signal.SIGUSR1, self._on_rotation)

    def _on_stop(self) -> None:
        if not self._stop.is_set():
            self._say("stopping: requests in flight are finished first; a second signal stops at once")
            self._stop.set()
            return
        for kept in self.processes:
            kept.kill()

    def _on_hangup(self) -> None:
        if self._has_terminal and _terminal_is_gone():
            self._on_stop()
        elif self._roll is None or self._roll.done():
            self._roll = asyncio.create_task(self._roll_workers())

    def _on_rotation(self) -> None:
        """The access log was rotated: the workers open it anew."""
        for kept in self._stages[0]:
            kept.signal(signal.SIGUSR1)

    async def _roll_workers(self) -> None:
        for kept in self._stages[0]:
            self._say(f"replacing {kept.spec.name}")
            try:
                is_replaced = await kept.replace(ROLL_TIMEOUT_S)
            except CrashLoop as error:
                self._say(f"the roll has ended early: {error}")
                return
            if not is_replaced:
                self._say(f"the roll has ended early: a new {kept.spec.name} did not become ready, the old one stays")
                return
        self._say("all workers are replaced")

    async def _announce(self) -> None:
        await asyncio.gather(*(kept.was_ready.wait() for kept in self.processes if kept.spec.is_ready is not None))
        await self._when_ready()

    async def _shut_down(self) -> None:
        if self._roll is not None:
            self._roll.cancel()
            await asyncio.gather(self._roll, return_exceptions=True)
        for stage in self._stages:
            await asyncio.gather(*(kept.stop() for kept in stage))
        with contextlib.suppress(FileNotFoundError):
            self._state_path.unlink()

    def _write_state(self) -> None:
        processes = {
            kept.spec.name: {"pid": kept.child.pid, "ready": kept.child.is_ready}
            for kept in self.processes
            if kept.child is not None and kept.child.is_alive
        }
        temporary = self._state_path.with_suffix(".new")
        temporary.write_text(json.dumps({"supervisor": os.getpid(), "processes": processes}, indent=2) + "\n")
        temporary.replace(self._state_path)


def _terminal_is_gone() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return True
    return False
