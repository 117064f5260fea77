"""An agent's relay that is killed between publishing a batch and recording that it did.

Its arguments: the broker's URL, a folder, the events queue. Its environment holds Django's settings.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import django

django.setup()

from gateway_project.agent.relay import Relay  # noqa: E402
from queues import states  # noqa: E402
from queues.broker import make_app  # noqa: E402


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(url: str, folder: str, events_queue: str) -> None:
    relay = Relay(make_app(url, Path(folder), events_queue))
    with patch.object(states, "published", die):
        relay.start()
        await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
