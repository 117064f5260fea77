from django.apps import AppConfig


class AdminPanelConfig(AppConfig):
    name = "admin_panel"
    label = "admin_panel"
    default_auto_field = "django.db.models.BigAutoField"
