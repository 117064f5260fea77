"""The forms of what `admin_panel.subjects` shows: plain fields of the row, and the members of its document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import new_class
from typing import Any, ClassVar, Self

from django import forms
from django.forms import BoundField

from access.alerts import EVENTS
from access.models import AlertChannel, Application, EndUserRole
from access.policies import LimitRule, Restrictions, TokenRules
from admin_panel.fields import ChipInput, ListField, MomentField, NumberField, TextField
from admin_panel.forms import RowForm
from admin_panel.policies import PolicyForm, Section, in_lines, policy_form


class SubjectForm(RowForm):
    """``lines`` are the plain fields as they stand: those of one line side by side."""

    lines: ClassVar[tuple[tuple[str, ...], ...]] = ()

    @property
    def own_lines(self) -> list[list[BoundField]]:
        return [[self[name] for name in line] for line in self.lines]


class AlertChannelForm(SubjectForm):
    lines = (("name", "medium"), ("url", "secret"), ("recipients",), ("min_interval_s", "is_active"))
    name = TextField(placeholder="on call")
    medium = forms.ChoiceField(choices=AlertChannel.Medium.choices, initial="webhook", widget=forms.RadioSelect)
    url = TextField(
        label="URL", mono=True, placeholder="https://alerts.example.com/portcullis", help_text="Of a webhook."
    )
    secret = TextField(
        label="Signed with",
        mono=True,
        placeholder="secret://env/UPSTREAM_ALERTS",
        help_text="A reference to the key of Standard Webhooks. Empty: not signed.",
    )
    recipients = ListField(widget=ChipInput(placeholder="ops@example.com"), help_text="Of e-mail.")
    min_interval_s = NumberField(
        label="Not more often than every", unit="seconds", initial=300, help_text="About the same limit."
    )
    is_active = forms.BooleanField(required=False, initial=True, label="Active")

    def changes(self) -> dict[str, Any]:
        return super().changes() | {"events": list(EVENTS)}


class EndUserForm(SubjectForm):
    lines: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("username", "name"),
        ("role",),
        ("is_active", "must_change_password"),
    )
    username = TextField(
        label="User name", mono=True, placeholder="ada@example.com", help_text="What they log in with."
    )
    name = TextField(placeholder="Ada Lovelace")
    role = forms.ChoiceField()
    is_active = forms.BooleanField(
        required=False, initial=True, label="Active", help_text="Otherwise their tokens stop within a second."
    )
    must_change_password = forms.BooleanField(
        required=False, label="Must choose another password", help_text="Until then nothing else is open to them."
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = [role.name for role in EndUserRole.objects.all()]
        field: Any = self.fields["role"]
        field.choices = [(name, name) for name in names]


class NewEndUserForm(EndUserForm):
    lines = (("username", "name"), ("role", "password"), ("is_active", "must_change_password"))
    password = forms.CharField(
        required=False,
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text="Empty: nobody can log in before you set one.",
    )


class EndUserRoleForm(SubjectForm):
    lines = (("name", "description"), ("scopes",), ("requests_per_hour", "burst_limit"))
    name = TextField(mono=True, placeholder="passenger")
    description = TextField()
    scopes = ListField(widget=ChipInput(placeholder="read:flights"), help_text="What their tokens carry.")
    requests_per_hour = NumberField(required=False, label="Limit", unit="per hour", help_text="Each user. Empty: none.")
    burst_limit = NumberField(required=False, label="At once", unit="requests", help_text="Empty: all of them.")


class BundleForm(SubjectForm):
    lines = (("name", "description"), ("limits",))
    name = TextField(mono=True, placeholder="public")
    description = TextField()
    limits = ListField(
        widget=ChipInput(suggest="limits", placeholder="none"),
        help_text="They then hold for what has a bundle that names them, and for nothing else.",
    )


class DocumentForm(SubjectForm, PolicyForm):
    """Plain fields, and the members of the row's document ``policy``, in ``groups`` under a title. Built by
    `_with_document`."""

    groups: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for part in self.parts:
            for member in part.members:
                self.initial.setdefault(member.form_name, member.default)

    def sections(self) -> Iterator[Section]:
        for title, names in self.groups:
            choice = self.choice if self.choice in names else ""
            yield Section(title, None, list(in_lines([self[name] for name in names])), choice)
        for section in super().sections():
            if section.switch is not None or not self.groups:
                yield section

    @classmethod
    def of(cls, row: Any, data: Mapping[str, Any] | None = None) -> Self:
        form = super().of(row, data)
        for line in cls.lines:
            form.initial.update({name: cls.value_of(row, name) for name in line})
        return form

    def changes(self) -> dict[str, Any]:
        plain = {name: self.cleaned_data[name] for line in self.lines for name in line}
        return plain | super().changes()

    def label_of(self, name: str) -> str:
        return str(self[name].label) if name in self.fields else "Rules"


class _LimitForm(DocumentForm):
    groups = (
        ("How many", ("limit", "algorithm", "window_s", "period", "burst", "queue", "max_wait_ms")),
        ("Whose", ("per",)),
        ("Of what", ("services", "routes", "applications", "roles", "methods", "paths")),
        ("Counting", ("mode", "outage", "alert")),
    )
    choice = "algorithm"
    counts_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "window_s": (
            "token_bucket",
            "sliding_window",
            "sliding_log",
            "fixed_window",
            "leaky_bucket",
            "spike_arrest",
        ),
        "period": ("quota",),
        "burst": ("token_bucket", "spike_arrest"),
        "queue": ("leaky_bucket",),
        "max_wait_ms": ("leaky_bucket",),
    }
    lines = (("name", "description"), ("is_active",))
    name = TextField(mono=True, placeholder="checkout", help_text="What clients read in RateLimit-Policy.")
    description = TextField()
    is_active = forms.BooleanField(required=False, initial=True, label="Active")


class _IssuerForm(DocumentForm):
    groups = (
        ("Signatures", ("algorithms", "jwks_url", "jwks", "secret", "decryption_key")),
        ("What must hold", ("audiences", "leeway_s", "max_age_s", "typ", "claims")),
        (
            "What claims mean",
            ("scope_claim", "roles_claim", "permissions_claim", "application_claim", "role_map", "headers"),
        ),
    )
    lines = (("name", "issuer"), ("application",), ("is_active",))
    name = TextField(placeholder="company login")
    issuer = TextField(mono=True, placeholder="https://login.example.com", help_text="The claim iss, exactly as it is.")
    application = TextField(
        suggest="applications", help_text="Whose requests they are, unless a claim of the token names another."
    )
    is_active = forms.BooleanField(required=False, initial=True, label="Active")

    @classmethod
    def value_of(cls, row: Any, name: str) -> Any:
        value = getattr(row, name, None)
        return value.name if isinstance(value, Application) else value

    def changes(self) -> dict[str, Any]:
        values = super().changes()
        application = values.pop("application")
        return values | {"application_id": None if application is None else application.pk}

    def clean_application(self) -> Application | None:
        name: str = self.cleaned_data["application"]
        found = Application.objects.filter(name=name).first() if name else None
        if name and found is None:
            raise forms.ValidationError(f"There is no application named {name}.")
        return found


class _KeyForm(DocumentForm):
    lines = (("name", "owner"), ("scopes",), ("expires_at",))
    name = TextField()
    owner = TextField(help_text="Who answers for it.")
    scopes = ListField(widget=ChipInput(placeholder="read:orders"), help_text="What routes may ask for.")
    expires_at = MomentField(label="Expires on", help_text="Empty: never.")

    def changes(self) -> dict[str, Any]:
        """A document that says nothing is none."""
        found = super().changes()
        return found | {"restrictions": found["restrictions"] or None}


def _with_document(base: type[DocumentForm], policy: str, kind: Any) -> type[DocumentForm]:
    made = policy_form(policy, kind)
    members = {"policy": policy, "parts": made.parts, **made.base_fields}
    form: type[DocumentForm] = new_class(
        base.__name__.lstrip("_"), (base,), exec_body=lambda space: space.update(members)
    )
    return form


LimitForm = _with_document(_LimitForm, "rule", LimitRule)
KeyEditForm = _with_document(_KeyForm, "restrictions", Restrictions)
IssuerForm = _with_document(_IssuerForm, "rules", TokenRules)
