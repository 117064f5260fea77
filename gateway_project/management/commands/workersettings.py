"""For `gateway_project.asgi`, whose process loads no Django itself."""

import sys
from contextlib import redirect_stdout
from typing import Any

from gateway_project import launch
from gateway_project.management.commands import rungateway
from gateway_project.worker_settings import worker_settings


class Command(rungateway.Command):
    help = "Prepare the database as rungateway does, and print what a worker must know of the settings as JSON."

    def handle(self, *args: Any, **options: Any) -> None:
        with self.errors_as_sentences(), redirect_stdout(sys.stderr):
            self.prepare()
            launch.make_var_dir()
        sys.stdout.buffer.write(worker_settings().to_json())
