"""The end users' part: what ends tokens early, signing keys as configuration, and document 004's roles."""

import django.utils.timezone
from django.db import migrations, models

from core.ids import new_id

ROLES = (
    ("passenger", "Passengers", 1000, 50),
    ("staff", "Staff", 5000, 100),
    ("admin", "Administrators of the services behind the gateway", 10_000, 200),
)


def make_roles(apps, schema_editor):
    using = schema_editor.connection.alias
    tenant, _ = apps.get_model("core", "Tenant").objects.using(using).get_or_create(
        id="default", defaults={"name": "Default"}
    )
    roles = apps.get_model("access", "EndUserRole").objects.using(using)
    for name, description, per_hour, burst in ROLES:
        roles.get_or_create(
            tenant=tenant,
            name=name,
            defaults={
                "id": new_id("eur"),
                "description": description,
                "requests_per_hour": per_hour,
                "burst_limit": burst,
            },
        )


class Migration(migrations.Migration):
    dependencies = [("access", "0004_administrators"), ("core", "0002_who_may")]

    operations = [
        migrations.AddField("enduser", "tokens_from", models.DateTimeField(blank=True, editable=False, null=True)),
        migrations.AddField("enduserrole", "tokens_from", models.DateTimeField(blank=True, editable=False, null=True)),
        migrations.AddField("signingkey", "revision", models.BigIntegerField(default=0)),
        migrations.AddField("signingkey", "updated_at", models.DateTimeField(default=django.utils.timezone.now)),
        migrations.AlterField(
            "tokenrevocation",
            "what",
            models.CharField(
                choices=[("session", "Session"), ("user", "User"), ("role", "Role"), ("token", "Token")], max_length=7
            ),
        ),
        migrations.AddIndex(
            "refreshtoken", models.Index(fields=["expires_at"], name="refresh_token_expires")
        ),
        migrations.RunPython(make_roles, migrations.RunPython.noop),
    ]
