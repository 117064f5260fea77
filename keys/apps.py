from django.apps import AppConfig


class KeysConfig(AppConfig):
    name = "keys"
    label = "keys"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        import keys.schema  # noqa: F401  registers what it defines; models are loaded only once every app is ready
