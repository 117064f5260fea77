"""A worker with a probe in its event loop: ``python -m bench.probed_worker FILE``, else like the real one.

The probe runs in every turn of the loop and never lets it sleep. Whenever two of its runs lie further apart than
`THRESHOLD_S`, it writes a line to FILE: when (monotonic seconds), how long (wall clock, ms), and how much CPU time the
loop's thread has used meanwhile (ms). Wall clock beyond CPU time is the machine doing something else.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TextIO

import uvloop

from gateway_project.dataplane.settings import WorkerSettings
from gateway_project.dataplane.worker import serve

THRESHOLD_S = 0.0002


class LoopProbe:
    """Begins at once, ends with the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, file: TextIO) -> None:
        self._loop = loop
        self._file = file
        self._wall_s, self._cpu_s = time.monotonic(), time.thread_time()
        loop.call_soon(self._look)

    def _look(self) -> None:
        wall_s = time.monotonic()
        gap_s = wall_s - self._wall_s
        if gap_s > THRESHOLD_S:
            cpu_s = time.thread_time()
            self._file.write(f"{wall_s:.6f} {gap_s * 1000:.3f} {(cpu_s - self._cpu_s) * 1000:.3f}\n")
            wall_s = time.monotonic()  # writing is our own doing
        self._wall_s, self._cpu_s = wall_s, time.thread_time()
        self._loop.call_soon(self._look)


async def _serve(settings: WorkerSettings, file: TextIO) -> None:
    LoopProbe(asyncio.get_running_loop(), file)
    await serve(settings)


def main() -> None:
    settings = WorkerSettings.from_json(sys.stdin.buffer.read())
    with Path(sys.argv[1]).open("w", buffering=1) as file:
        uvloop.run(_serve(settings, file))


if __name__ == "__main__":
    main()
