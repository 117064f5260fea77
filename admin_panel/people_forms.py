"""Forms of administrators, their roles and invitations."""

from collections.abc import Iterable
from typing import Any

from django import forms

from access.administration.rights import roles_of_tenant
from admin_panel.fields import TextField
from admin_panel.forms import RowForm
from core.permissions import EVERYTHING, RESOURCES, covers
from core.tenants import own_tenant


def role_choices() -> list[tuple[str, str]]:
    roles = roles_of_tenant(own_tenant())
    return [(name, name) for name in sorted(roles, key=lambda name: (not roles[name].is_builtin, name))]


class RolesField(forms.MultipleChoiceField):
    """Names of roles to tick; the use-case judges them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(required=False, choices=role_choices, widget=forms.CheckboxSelectMultiple, **options)

    def valid_value(self, value: str) -> bool:
        return True


class UserForm(RowForm):
    username = TextField(label="User name")
    email = TextField(label="E-mail")
    name = TextField(label="Name")
    roles = RolesField(label="Roles", help_text="Permissions of several roles add up.")

    @classmethod
    def value_of(cls, row: Any, name: str) -> Any:
        return getattr(row.user, name) if name in ("username", "email") else super().value_of(row, name)


class InviteForm(forms.Form):
    use_required_attribute = False
    email = TextField(label="E-mail", placeholder="bob@example.com")
    roles = RolesField(label="Roles", help_text="No more than you have yourself.")


class AcceptForm(forms.Form):
    use_required_attribute = False
    username = TextField(label="User name")
    name = TextField(label="Your name")
    password = forms.CharField(
        label="Password",
        strip=False,
        help_text="12 characters or more; several words do well.",
        widget=forms.PasswordInput(attrs={"class": "form-control", "autocomplete": "new-password"}),
    )
    again = forms.CharField(
        label="Password, once more",
        strip=False,
        widget=forms.PasswordInput(attrs={"class": "form-control", "autocomplete": "new-password"}),
    )

    def clean(self) -> dict[str, Any]:
        values = super().clean() or {}
        if "password" in values and "again" in values and values["password"] != values["again"]:
            self.add_error("again", "This is not the same.")
        return values


class PermissionsField(forms.MultipleChoiceField):
    """Permissions to tick, in a table of resources and actions (roles/permissions.html)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(required=False, widget=forms.CheckboxSelectMultiple, **options)

    def valid_value(self, value: str) -> bool:
        return True

    def to_python(self, value: Any) -> list[str]:
        """What a wildcard covers need not stand beside it."""
        chosen = list(dict.fromkeys(super().to_python(value)))
        return [each for each in chosen if not covers([other for other in chosen if other != each], each)]


class RoleForm(RowForm):
    fixed = ("name",)
    name = TextField(label="Name", mono=True, placeholder="ROUTER", help_text="It cannot change later.")
    description = TextField()
    permissions = PermissionsField(label="Permissions")
    require_mfa = forms.BooleanField(
        required=False,
        label="Requires a second factor",
        help_text="Whoever has the role adds a passkey or an authenticator app before anything else.",
    )

    def table(self) -> list[dict[str, Any]]:
        return permission_table(self["permissions"].value() or ())


def permission_table(granted: Iterable[str]) -> list[dict[str, Any]]:
    """A line for each resource: what may be ticked there, what is, and what a wildcard gives anyway."""
    chosen = tuple(granted)
    return [
        {
            "name": name,
            "purpose": resource.purpose,
            "all": {"value": f"admin:{name}:*", "is_granted": covers(chosen, f"admin:{name}:*")},
            "actions": [
                {
                    "name": action,
                    "value": f"admin:{name}:{action}",
                    "is_there": action in resource.actions,
                    "is_granted": covers(chosen, f"admin:{name}:{action}"),
                }
                for action in ("read", "create", "update", "delete")
            ],
        }
        for name, resource in RESOURCES.items()
    ]


def is_everything(permissions: Iterable[str]) -> bool:
    return EVERYTHING in tuple(permissions)
