"""The panel's forms. They only read and show: what is right or wrong the use-cases say, and it lands at the field.

Field names are the models' attribute names, which is what use-cases take and what their faults name.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

from django import forms
from django.conf import settings

from access.models import Application
from admin_panel.fields import ChipInput, DocumentField, ListField, MethodsField, MomentField, NumberField, TextField
from admin_panel.policy_words import EXAMPLES
from admin_panel.wording import refusal_in_words
from core.faults import GatewayFault
from queues.models import QueueRoute
from routing.models import ServiceConfig

ANY = ("*",)


class RowForm(forms.Form):
    """A form of one row. ``revision`` is the row's when the admin began (absent for a new one)."""

    use_required_attribute = False
    revision = forms.IntegerField(required=False, widget=forms.HiddenInput)
    reason = TextField(label="Reason", help_text="Kept in the history beside the change.")
    not_of_the_row: ClassVar[tuple[str, ...]] = ("revision", "reason")
    fixed: ClassVar[tuple[str, ...]] = ()  # fields that a stored row keeps

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for field in self.fields.values():
            widget = field.widget
            if isinstance(widget, forms.CheckboxInput):
                widget.attrs.setdefault("class", "form-check-input")
            elif isinstance(widget, forms.Select):
                widget.attrs.setdefault("class", "form-select")
            elif not isinstance(widget, forms.CheckboxSelectMultiple | forms.RadioSelect | forms.HiddenInput):
                widget.attrs.setdefault("class", "form-control")

    @classmethod
    def of(cls, row: Any, data: Mapping[str, Any] | None = None) -> Self:
        """The form to edit a stored row."""
        form = cls(data, initial={name: cls.value_of(row, name) for name in cls.base_fields})
        for name in cls.fixed:
            form.fields[name].disabled = True
        return form

    @classmethod
    def value_of(cls, row: Any, name: str) -> Any:
        return getattr(row, name, None)

    def changes(self) -> dict[str, Any]:
        """What the use-case is to set, by attribute name."""
        return {name: value for name, value in self.cleaned_data.items() if name not in self.not_of_the_row}

    def label_of(self, name: str) -> str:
        """What the form calls one of `changes`."""
        return str(self[name].label)

    def take(self, fault: GatewayFault) -> None:
        """Put a refusal's sentences at the fields they speak of; those of no field of ours above the form."""
        errors: Mapping[str, list[str]] = fault.members.get("errors", {})
        for name, sentences in errors.items():
            for sentence in sentences:
                self.add_error(name if name in self.fields else None, refusal_in_words(sentence))
        if not errors:
            self.add_error(None, fault.detail)


class ServiceForm(RowForm):
    fixed = ("name",)
    name = TextField(mono=True, help_text="Clients call /api/v1/name/…; it cannot change later.", placeholder="billing")
    description = TextField()
    bundles = ListField(
        widget=ChipInput(suggest="bundles", placeholder="none"),
        help_text="Their policies count where the service says nothing itself, in this order.",
    )
    default_url = TextField(
        label="Default URL",
        mono=True,
        placeholder="http://10.0.0.7:8000",
        help_text="Serves as long as no version does.",
    )
    current_version = TextField(
        mono=True,
        placeholder="v1",
        help_text="Answers when a request names no version and no version has a weight.",
    )
    fallback_url = TextField(
        label="Fallback URL", mono=True, help_text="Used once when no byte of the request reached a target."
    )
    path_prefix = TextField(mono=True, placeholder="/api", help_text="Stands before every path at the upstream.")
    request_timeout_ms = NumberField(
        label="Time to first byte", unit="ms", required=False, help_text="Empty: the gateway's default."
    )
    connect_timeout_ms = NumberField(label="Time to connect", unit="ms", required=False, help_text="Empty: 5 seconds.")
    idle_timeout_ms = NumberField(
        label="Silence within an answer", unit="ms", required=False, help_text="Empty: 30 seconds."
    )
    total_timeout_ms = NumberField(label="Total time", unit="ms", required=False, help_text="Empty: no limit.")
    health_endpoint = TextField(mono=True, placeholder="/health", help_text="Probed by every host, if it is set.")
    implicit_route = forms.BooleanField(
        required=False,
        label="Keep the implicit route",
        help_text="Stay reachable as /api/v1/name/… although explicit routes lead here.",
    )


class VersionForm(RowForm):
    fixed = ("version",)
    version = TextField(label="Name", mono=True, placeholder="v2", help_text="It cannot change later.")
    url = TextField(label="URL", mono=True, placeholder="http://10.0.0.7:8000")
    weight = NumberField(
        unit="of the sum", initial=0, help_text="0 to 10000. With 0 it answers only requests that name it."
    )
    is_active = forms.BooleanField(
        required=False, initial=True, label="Active", help_text="Inactive versions get no traffic at all."
    )
    lifecycle = forms.ChoiceField(
        choices=[
            ("supported", "Supported"),
            ("deprecated", "Deprecated: answers, and says so"),
            ("retired", "Retired: answers 410"),
        ],
        initial="supported",
        widget=forms.RadioSelect,
    )
    deprecated_at = MomentField(label="Deprecated since", help_text="2026-01-31, told as Deprecation (RFC 9745).")
    sunset_at = MomentField(label="Ends on", help_text="2026-06-30, told as Sunset (RFC 8594).")
    deprecation_link = TextField(label="What callers should read", mono=True, placeholder="https://docs.example.com/v2")


class TargetForm(RowForm):
    url = TextField(
        label="Address", mono=True, placeholder="http://10.0.0.8:8000", help_text="Scheme, host and port only."
    )
    weight = NumberField(unit="of the sum", initial=100, help_text="0 to 10000: its share beside the other targets.")
    is_active = forms.BooleanField(required=False, initial=True, label="Active")


class RouteForm(RowForm):
    name = TextField(placeholder="orders-public")
    description = TextField()
    bundles = ListField(
        widget=ChipInput(suggest="bundles", placeholder="none"),
        help_text="Their policies count where the route says nothing itself, in this order.",
    )
    path = TextField(
        label="Path pattern",
        mono=True,
        placeholder="/api/v1/orders/{id}/*",
        help_text="Whole segments: {name} or * stand for exactly one, a final /* for the rest.",
    )
    hosts = ListField(
        widget=ChipInput(placeholder="any host"), help_text="Empty: any. *.example.com covers all below it."
    )
    methods = MethodsField(help_text="None ticked: any method.")
    priority = NumberField(initial=0, help_text="Decides between patterns that are equally specific; higher wins.")
    leads_to = forms.ChoiceField(
        choices=[("service", "A service"), ("queue", "A queue"), ("aggregate", "Several calls")],
        initial="service",
        widget=forms.RadioSelect,
    )
    service = TextField(mono=True, suggest="services", placeholder="billing")
    version = TextField(label="Pinned version", mono=True, help_text="Empty: by the request, else by weight.")
    aggregation = DocumentField(
        label="Calls",
        example=EXAMPLES["aggregation"],
    )
    queue_route = TextField(label="Queue route", mono=True, suggest="queue-routes", placeholder="email-send")
    strip_prefix = TextField(mono=True, placeholder="/api/v1", help_text="Taken off the front of the path.")
    replace_prefix = TextField(label="Put in its place", mono=True, placeholder="/internal")
    request_timeout_ms = NumberField(
        label="Time to first byte", unit="ms", required=False, help_text="Empty: the service's."
    )
    total_timeout_ms = NumberField(label="Total time", unit="ms", required=False, help_text="Empty: no limit.")
    connect_timeout_ms = NumberField(
        label="Time to connect", unit="ms", required=False, help_text="Empty: the service's."
    )
    idle_timeout_ms = NumberField(
        label="Silence within an answer", unit="ms", required=False, help_text="Empty: the service's."
    )
    requires_key = forms.BooleanField(
        required=False, initial=True, label="Requires a key", help_text="Without it anybody may call the route."
    )
    max_body_bytes = NumberField(
        label="Largest body", unit="bytes", required=False, help_text="Empty: the gateway's default."
    )
    allow_empty_segments = forms.BooleanField(
        required=False, label="Allow empty segments", help_text="Lets paths with // pass."
    )
    retry_unsafe_methods = forms.BooleanField(
        required=False,
        label="Safe to send again",
        help_text="Its POST and PATCH requests may be repeated after a broken connection.",
    )
    pass_credentials = forms.BooleanField(
        required=False, label="Pass credentials on", help_text="The upstream sees the client's key or token."
    )
    is_active = forms.BooleanField(
        required=False, initial=True, label="Active", help_text="An inactive route answers 404."
    )
    not_of_the_row = (*RowForm.not_of_the_row, "leads_to")

    @property
    def has_exceptions(self) -> bool:
        """Whether anything stands in the part of the form that is folded up otherwise."""
        names = ("request_timeout_ms", "total_timeout_ms", "connect_timeout_ms", "idle_timeout_ms", "max_body_bytes")
        ticks = ("allow_empty_segments", "retry_unsafe_methods", "pass_credentials")
        return any(self[name].value() not in (None, "", False) or self[name].errors for name in (*names, *ticks))

    @classmethod
    def value_of(cls, row: Any, name: str) -> Any:
        if name == "leads_to":
            return "queue" if row.queue_route_id else "service" if row.service_id else "aggregate"
        value = getattr(row, name, None)
        return value.name if isinstance(value, ServiceConfig | QueueRoute) else value

    def clean(self) -> dict[str, Any]:
        """Names become the rows they stand for; the destination that was not chosen becomes None."""
        values = self.cleaned_data
        to = values.get("leads_to")
        values["service"] = _named(self, ServiceConfig, "service", "service") if to == "service" else None
        values["queue_route"] = _named(self, QueueRoute, "queue_route", "queue route") if to == "queue" else None
        if to != "aggregate":
            values["aggregation"] = None
        elif values.get("aggregation") is None and not self.has_error("aggregation"):
            self.add_error("aggregation", "Name the calls.")
        if to != "service":
            values["version"] = ""
        return values


class ApplicationForm(RowForm):
    name = TextField(placeholder="mobile-app")
    description = TextField()
    bundles = ListField(
        widget=ChipInput(suggest="bundles", placeholder="none"),
        help_text="Their policies count where the application says nothing itself, in this order.",
    )
    allowed_services = ListField(
        widget=ChipInput(suggest="destinations", placeholder="none yet"),
        help_text="Services and queue routes by name; * for all of them.",
    )
    allowed_versions = ListField(widget=ChipInput(placeholder="none"), initial=list(ANY), help_text="* for all.")
    endpoint_mode = forms.ChoiceField(
        label="Endpoints",
        choices=[("all", "All endpoints of the allowed services"), ("listed", "Only those on its whitelist")],
        initial="all",
        widget=forms.RadioSelect,
    )
    rate_limit = NumberField(
        label="Rate limit", unit="per minute", required=False, help_text="For each key. Empty: the gateway's default."
    )
    priority = NumberField(initial=5, help_text="0 to 9. Where a service is overloaded, the lowest are refused first.")
    is_active = forms.BooleanField(
        required=False, initial=True, label="Active", help_text="Keys of an inactive application are refused."
    )


class EntryForm(RowForm):
    endpoint_path = TextField(
        label="Path",
        mono=True,
        placeholder="/api/v1/billing/invoices/*",
        help_text="As clients write it; {name} or * for one segment, a final /* for the rest.",
    )
    allowed_methods = MethodsField(label="Methods", none=ANY, help_text="None ticked: any method.")
    allowed_versions = ListField(
        label="Versions", none=ANY, widget=ChipInput(placeholder="any"), help_text="Empty: any version."
    )
    rate_limit = NumberField(
        label="Rate limit", unit="per minute", required=False, help_text="Empty: the application's."
    )
    is_public = forms.BooleanField(
        required=False, label="Public", help_text="Anybody may call it without a key; limited per address."
    )


class KeyForm(RowForm):
    name = TextField(placeholder="production backend")
    application = TextField(suggest="applications", placeholder="mobile-app")
    scopes = ListField(
        widget=ChipInput(placeholder="read:orders"), help_text="What routes may ask for. Admin keys are made elsewhere."
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        default = settings.API_KEY_DEFAULT_DAYS
        lifetimes = [(str(days), f"in {days} days") for days in sorted({30, 90, 180, 365, default})]
        self.fields["expires_in_days"] = forms.ChoiceField(
            label="Expires",
            choices=[*lifetimes, ("never", "never")],
            initial=str(default),
            widget=forms.Select(attrs={"class": "form-select control-short"}),
        )

    def clean_application(self) -> Application | None:
        return _named(self, Application, "application", "application")

    def clean_expires_in_days(self) -> int | None:
        chosen: str = self.cleaned_data["expires_in_days"]
        return None if chosen == "never" else int(chosen)


_Named = TypeVar("_Named", ServiceConfig, QueueRoute, Application)


def _named(form: RowForm, model: type[_Named], field: str, noun: str) -> _Named | None:
    """The row whose name stands in a field; an error at the field when there is none."""
    name = form.cleaned_data.get(field, "")
    row = model._default_manager.filter(name=name).first() if name else None
    if row is None:
        form.add_error(field, f"There is no {noun} named {name}." if name else f"Name the {noun}.")
    return row
