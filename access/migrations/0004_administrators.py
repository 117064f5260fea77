"""The built-in roles; and whoever administers today may do everything, as before."""

from django.conf import settings
from django.db import migrations

from access.administration.builtin import BUILTIN_ROLES, SUPER_ADMIN, make_builtin_roles
from core.tenants import DEFAULT_TENANT


def make_roles_and_accounts(apps, schema_editor):
    using = schema_editor.connection.alias
    make_builtin_roles(using=using, apps=apps)
    accounts = apps.get_model("access", "AdminAccount").objects.using(using)
    users = apps.get_model(settings.AUTH_USER_MODEL).objects.using(using)
    for user in users.filter(is_staff=True, admin_account__isnull=True):
        name = f"{user.first_name} {user.last_name}".strip()[:150]
        accounts.create(user=user, name=name, roles=[SUPER_ADMIN], is_active=user.is_active)


def forget_roles_and_accounts(apps, schema_editor):
    """The former version knows neither roles nor tenants of administrators: there, staff may do everything. So whoever
    may not, is none any more."""
    using = schema_editor.connection.alias
    accounts = apps.get_model("access", "AdminAccount").objects.using(using)
    lesser = [
        account.user_id
        for account in accounts.select_related("user")
        if not account.user.is_superuser and not (account.tenant_id == DEFAULT_TENANT and SUPER_ADMIN in account.roles)
    ]
    users = apps.get_model(settings.AUTH_USER_MODEL).objects.using(using)
    for user_id in lesser:
        users.filter(pk=user_id).update(is_staff=False)
    accounts.all().delete()
    apps.get_model("access", "AdminRole").objects.using(using).filter(name__in=BUILTIN_ROLES).delete()


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0003_who_may"),
        ("core", "0002_who_may"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [migrations.RunPython(make_roles_and_accounts, forget_roles_and_accounts)]
