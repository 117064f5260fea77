"""Child processes: started so that none outlives its parent, followed, and started again with back-off when they die.

Imports no Django: the supervisor uses it, and so does `gateway_project.asgi`, which serves requests itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TAIL_LINES = 20  # of a child's output, kept to say why it died
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 10.0
STABLE_AFTER_S = 30.0  # whoever has lived this long starts again at once when it dies
EARLY_DEATH_S = 15.0
EARLY_DEATHS = 3
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to start. What it writes is relayed line by line under its name, but with ``has_stdout`` its standard output
    goes where ours goes: it is data (an access log). ``is_ready`` is asked with the process id until it says yes;
    without it a process that has lived for `settle_s` counts as ready. ``stop_timeout_s`` after SIGTERM it is killed.
    """

    name: str
    command: tuple[str, ...]
    stdin: bytes = b""
    has_stdout: bool = False
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    is_ready: Callable[[int], Awaitable[bool]] | None = None
    settle_s: float = 3.0
    stop_timeout_s: float = 10.0


class CrashLoop(Exception):
    """A process died again and again before it was ever ready. ``str()`` says which one and its last lines."""


def _die_with_parent(parent: int) -> None:
    """Runs in the child between fork and exec: SIGTERM when the parent is gone, however it went (prctl(2))."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def back_off_s(deaths: int) -> float:
    """The wait before the next start after so many deaths in a row."""
    return min(FIRST_DELAY_S * 2.0 ** max(deaths - 1, 0), LONGEST_DELAY_S)


class Child:
    """One run of a process. It leads its own session, so that Ctrl-C reaches the parent alone, which stops in order."""

    def __init__(self, spec: ProcessSpec, process: asyncio.subprocess.Process) -> None:
        self.spec = spec
        self.pid = process.pid
        self.started_at = time.monotonic()
        self.is_ready = False
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._process = process
        self._relay = asyncio.create_task(self._relay_output())

    @classmethod
    async def start(cls, spec: ProcessSpec) -> Child:
        """Raises OSError when the command cannot be run at all."""
        process = await asyncio.create_subprocess_exec(
            *spec.command,
            stdin=asyncio.subprocess.PIPE if spec.stdin else asyncio.subprocess.DEVNULL,
            stdout=None if spec.has_stdout else asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE if spec.has_stdout else asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(_die_with_parent, os.getpid()),
            cwd=ROOT,
            env=spec.environment,
        )
        child = cls(spec, process)
        if process.stdin is not None:
            with contextlib.suppress(ConnectionError):
                process.stdin.write(spec.stdin)
                await process.stdin.drain()
            process.stdin.close()
        return child

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.started_at

    async def wait(self) -> int:
        code = await self._process.wait()
        # What it said last may still be in the pipe; a grandchild may hold the pipe open for longer than we care.
        await asyncio.wait({self._relay}, timeout=0.5)
        return code

    async def becomes_ready(self) -> bool:
        """Waits as long as it lives; False when it died first."""
        while self.is_alive:
            if await self._looks_ready():
                self.is_ready = True
                return True
            await asyncio.sleep(0.05)
        return False

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL for whatever has not ended in time."""
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), self.spec.stop_timeout_s)
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """SIGKILL for the process and whatever it started."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def signal(self, number: int) -> None:
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _looks_ready(self) -> bool:
        if self.spec.is_ready is None:
            return self.age_s >= self.spec.settle_s
        return await self.spec.is_ready(self.pid)

    async def _relay_output(self) -> None:
        stream = self._process.stderr or self._process.stdout
        if stream is None:
            return
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # a line beyond the stream's limit; the rest of it follows as lines of its own
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            if not text:
                continue
            self.tail.append(text)
            with contextlib.suppress(OSError, ValueError):  # nobody reads us any more
                sys.stderr.write(f"{self.spec.name:>14} | {text}\n")
                sys.stderr.flush()


class KeptProcess:
    """Keeps one process running. ``say`` gets a line for each thing that a person should know; ``changed`` is called
    after every start, readiness and death."""

    def __init__(self, spec: ProcessSpec, say: Say, changed: Callable[[], None] = lambda: None) -> None:
        self.spec = spec
        self.child: Child | None = None
        self.was_ready = asyncio.Event()
        self._say = say
        self._changed = changed
        self._deaths = 0  # in a row, none of which lived for `STABLE_AFTER_S`
        self._is_stopping = False
        self._replacing = asyncio.Lock()
        self._watchers: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Returns after `stop`. Raises `CrashLoop` when the process cannot be started."""
        while not self._is_stopping:
            async with self._replacing:
                if (self.child is None or not self.child.is_alive) and not self._is_stopping:
                    self._adopt(await self._start())
            child = self.child
            if child is None:
                return
            code = await child.wait()
            if child is self.child and not self._is_stopping:
                await self._after_death(child, code)

    async def replace(self, timeout_s: float) -> bool:
        """Start a successor beside the process, wait until it is ready, then stop the old one. False: the successor
        did not become ready, and the old one stays."""
        async with self._replacing:
            old, successor = self.child, await self._start()
            try:
                is_ready = await asyncio.wait_for(successor.becomes_ready(), timeout_s)
            except TimeoutError:
                is_ready = False
            except asyncio.CancelledError:
                successor.kill()
                raise
            if not is_ready:
                await successor.stop()
                return False
            self._adopt(successor)
        if old is not None:
            await old.stop()
        return True

    async def stop(self) -> None:
        """SIGTERM, and the end of `run`. Cancel a `replace` under way first."""
        self._is_stopping = True
        async with self._replacing:  # a start under way comes to its end first, so that nothing is left behind
            child = self.child
        if child is not None:
            await child.stop()

    def signal(self, number: int) -> None:
        """Not before it is ready: it may not have its handlers yet, and then the signal would end it."""
        if self.child is not None and self.child.is_ready:
            self.child.signal(number)

    def kill(self) -> None:
        self._is_stopping = True
        if self.child is not None:
            self.child.kill()

    async def _start(self) -> Child:
        try:
            return await Child.start(self.spec)
        except OSError as error:
            raise CrashLoop(f"{self.spec.name} cannot be started: {error}") from None

    def _adopt(self, child: Child) -> None:
        self.child = child
        if self._is_stopping:
            child.kill()
        self._changed()
        watcher = asyncio.create_task(self._watch_readiness(child))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _watch_readiness(self, child: Child) -> None:
        if await child.becomes_ready() and not self._is_stopping:
            self.was_ready.set()
            self._say(f"{self.spec.name} is ready (pid {child.pid})")
            self._changed()

    async def _after_death(self, child: Child, code: int) -> None:
        self._changed()
        self._deaths = 1 if child.age_s >= STABLE_AFTER_S else self._deaths + 1
        reason = _ending(code)
        if not self.was_ready.is_set() and child.age_s < EARLY_DEATH_S and self._deaths >= EARLY_DEATHS:
            raise CrashLoop("\n    ".join([f"{self.spec.name} cannot start, it {reason}:", *child.tail]))
        delay_s = back_off_s(self._deaths)
        self._say(f"{self.spec.name} {reason}; starting it again in {delay_s:.1f} s")
        await asyncio.sleep(delay_s)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
