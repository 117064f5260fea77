"""``python -m tests.small_supervisor DIR``: the real supervisor over small Python scripts, for `test_supervisor`.

``DIR/stages.json`` is ``[[{"name", "code"}, …], …]``. A child is ready when the file ``DIR/ready-PID`` exists.
"""

import asyncio
import json
import sys
from pathlib import Path

from gateway_project.processes import CrashLoop, ProcessSpec
from gateway_project.supervisor import Supervisor, say


def main(directory: Path) -> None:
    async def is_ready(pid: int) -> bool:
        return (directory / f"ready-{pid}").exists()

    def process(child: dict[str, str]) -> ProcessSpec:
        command = (sys.executable, "-c", child["code"], str(directory), child["name"])
        return ProcessSpec(child["name"], command, is_ready=is_ready, stop_timeout_s=3)

    async def announce() -> None:
        say("everything is ready")

    stages = [[process(child) for child in stage] for stage in json.loads((directory / "stages.json").read_text())]
    supervisor = Supervisor(stages, directory / "processes.json", announce)
    try:
        asyncio.run(supervisor.run())
    except CrashLoop as error:
        sys.exit(f"portcullis: {error}")
    say("stopped")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
