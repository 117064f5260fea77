"""``manage.py permissions [--write]``: which role may use which endpoint."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from gateway_project.permissions_page import permissions_page


class Command(BaseCommand):
    help = "Print the table of endpoints and roles as Markdown."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--write", action="store_true", help="to docs/permissions.md")

    def handle(self, *, write: bool, **_: Any) -> None:
        if write:
            Path(settings.BASE_DIR / "docs" / "permissions.md").write_text(permissions_page())
        else:
            self.stdout.write(permissions_page())
