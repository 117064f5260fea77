from typing import Any

from django.apps import AppConfig
from django.apps import apps as loaded
from django.apps.registry import Apps
from django.conf import settings
from django.db.models.signals import post_migrate

from core.masking import Masker, install


class CoreConfig(AppConfig):
    name = "core"
    label = "core"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        install(Masker(settings.MASK, settings.API_KEY_PREFIX, settings.MASK_PATTERNS))
        post_migrate.connect(make_default_tenant, sender=self)


def make_default_tenant(using: str, apps: Apps = loaded, **_: Any) -> None:
    from core.models import DEFAULT_TENANT  # models are loaded only once every app is ready

    try:
        tenants = apps.get_model("core", "Tenant").objects
    except LookupError:  # the migration was undone
        return
    tenants.using(using).get_or_create(id=DEFAULT_TENANT, defaults={"name": "Default"})
