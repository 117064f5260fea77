"""The processes that every gateway has besides those that serve requests. No Django: they load it themselves."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gateway_project.probes import accepts, http_answers
from gateway_project.processes import ProcessSpec

# glibc keeps what a thread has freed: 19 MiB for each thread that has ever computed argon2. Large blocks go to mmap.
_RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}
# Celery's warning is about pickled tasks; ours are JSON. Containers and CI often have no other user than root.
CALM_CELERY = {"PYTHONWARNINGS": "ignore:You're running the worker with superuser privileges"}


def agent(socket_path: Path) -> ProcessSpec:
    return ProcessSpec(
        name="agent",
        command=(sys.executable, "manage.py", "runagent"),
        environment={**os.environ, **_RETURN_MEMORY},
        is_ready=lambda _: accepts(socket_path),
    )


def control(socket_path: Path) -> ProcessSpec:
    return ProcessSpec(
        name="control",
        command=(sys.executable, "-m", "gateway_project.control_server"),
        environment={**os.environ, **_RETURN_MEMORY},
        is_ready=lambda _: http_answers(socket_path),
    )
