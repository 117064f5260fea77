from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class AccessConfig(AppConfig):
    name = "access"
    label = "access"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        import access.end_users.schema
        import access.receivers  # noqa: F401  # it registers what it defines; models are loaded only once every app is

        post_migrate.connect(_make_builtin_roles, sender=self)


def _make_builtin_roles(**arguments: Any) -> None:
    from access.administration.builtin import make_builtin_roles  # loaded only once every app is ready

    make_builtin_roles(**arguments)
