#!/usr/bin/env python
"""Commands of the gateway: ``manage.py rungateway``, ``createadmin``, ``migrate`` and the rest of Django's."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_project.settings")
    if "--embedded" in sys.argv:
        os.environ["EMBEDDED"] = "true"
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        print(f"portcullis: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
