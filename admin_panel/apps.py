from django.apps import AppConfig


class AdminPanelConfig(AppConfig):
    name = "admin_panel"
    label = "admin_panel"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from admin_panel.sign_in import forgotten, hidden, sessions, trail  # models are loaded now

        trail.listen()
        forgotten.listen()
        sessions.listen()
        hidden.hide()
