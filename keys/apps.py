from django.apps import AppConfig


class KeysConfig(AppConfig):
    name = "keys"
    label = "keys"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        # They register what they define; models are loaded only once every app is ready.
        import keys.receivers
        import keys.schema  # noqa: F401
