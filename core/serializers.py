"""JSON of the admin API: camelCase names, times in epoch milliseconds, strict types, and nothing silently ignored."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

import msgspec
from django.db import models
from drf_spectacular.plumbing import get_lib_doc_excludes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from core.api_problems import camel
from core.models import ConfigRow
from core.policies import Policy
from core.validation import LIST_LIMIT

Row = TypeVar("Row", bound=models.Model)
POLICY_SCHEMAS: dict[str, Any] = {}  # by name, as far as the API has them
_LAST_MS = 253_402_300_799_999  # the end of the year 9999


class Text(serializers.CharField):
    """A string and nothing that looks like one."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class Flag(serializers.BooleanField):
    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


class WholeNumber(serializers.IntegerField):
    def to_internal_value(self, data: Any) -> int:
        if not isinstance(data, int) or isinstance(data, bool):
            self.fail("invalid")
        return data


class Document(serializers.JSONField):
    """A policy: one JSON object or null. What it may hold is the use-case's to say, at the member that is wrong."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"required": False, "allow_null": True} | options))

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, dict):
            raise serializers.ValidationError("This is a JSON object, or null.")
        return data


@extend_schema_field(
    {
        "type": "integer",
        "format": "int64",
        "minimum": 0,
        "maximum": _LAST_MS,
        "description": "Milliseconds since 1970-01-01T00:00:00Z",
    }
)
class EpochMillis(serializers.Field[datetime, int, int, datetime]):
    default_error_messages = {
        "invalid": "A time is a whole number of milliseconds since 1970-01-01T00:00:00Z.",
        "range": "The time is not between 1970 and 9999.",
    }

    def to_internal_value(self, data: int) -> datetime:
        if not isinstance(data, int) or isinstance(data, bool):
            self.fail("invalid")
        if not 0 <= data <= _LAST_MS:
            self.fail("range")
        return datetime.fromtimestamp(data / 1000, UTC)

    def to_representation(self, value: datetime) -> int:
        return epoch_ms(value)


def epoch_ms(value: datetime) -> int:
    return round(value.timestamp() * 1000)


class _TextList(serializers.ListField):
    def to_internal_value(self, data: Any) -> list[Any]:
        if isinstance(data, list) and len(data) > LIST_LIMIT:  # before it looks at each of them
            self.fail("too_long")
        return super().to_internal_value(data)


def text_list(**options: Any) -> serializers.ListField:
    too_long: dict[str, Any] = {"too_long": f"At most {LIST_LIMIT} entries are allowed."}
    return _TextList(child=Text(allow_blank=False), error_messages=too_long, **options)


class StrictSerializer(serializers.Serializer[Any]):
    """An unknown member is an error at that member; so is a read-only one that says other than the object does."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, Mapping):
            raise serializers.ValidationError({"body": ["Send a JSON object."]})
        errors = {}
        for name in data:
            field = self.fields.get(name)
            if field is None:
                errors[str(name)[:100]] = ["There is no such field."]
            elif field.read_only and not self._says_the_same(name, data[name]):
                errors[name] = ["This field cannot be written."]
        if errors:
            raise serializers.ValidationError(errors)
        return super().to_internal_value(data)

    def _says_the_same(self, name: str, value: Any) -> bool:
        """What one has read one may send back, so that GET, change, PUT works."""
        return self.instance is not None and self.to_representation(self.instance).get(name) == value


_WORDS = {
    "bundles": "Names of bundles; their policies count where nothing is said here, in this order",
    "description": "For people",
    "revision": "The revision that has last changed it, as in its `ETag`",
}


class ConfigSerializer(StrictSerializer, serializers.ModelSerializer[Row]):
    """A configuration row. Its fields are listed in Meta by attribute name and appear in camelCase."""

    identity: ClassVar[str] = ""  # the attribute that stands in the URL: a PUT need not repeat it
    words: ClassVar[Mapping[str, str]] = {}  # what the document says of a field, by attribute
    bounds: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # JSON Schema of what the use-cases ask of it, likewise

    serializer_field_mapping = {
        **serializers.ModelSerializer.serializer_field_mapping,
        models.CharField: Text,
        models.TextField: Text,
        models.BooleanField: Flag,
        models.IntegerField: WholeNumber,
        models.BigIntegerField: WholeNumber,
        models.PositiveIntegerField: WholeNumber,
        models.PositiveBigIntegerField: WholeNumber,
        models.PositiveSmallIntegerField: WholeNumber,
        models.DateTimeField: EpochMillis,
    }

    def get_fields(self) -> dict[str, Any]:
        fields, words = {}, {**_WORDS, **self.words}
        for name, field in super().get_fields().items():
            field.help_text = field.help_text or words.get(name)
            _take_as_it_is(field, self.bounds.get(name, {}))
            if camel(name) != name and field.source is None:
                field.source = name
            if name == self.identity and self.instance is not None:
                field.required = False
            fields[camel(name)] = field
        return fields

    def get_validators(self) -> list[Any]:
        return []  # what must be unique is the use-cases' to say, under their lock

    def changes(self) -> dict[str, Any]:
        """What to store, by attribute. A PUT replaces: a field that it leaves out goes back to its default."""
        values = dict(self.validated_data)
        if self.instance is None or self.partial:
            return values
        model: type[models.Model] = self.Meta.model
        for field in self.fields.values():
            name = field.source or ""
            if not field.read_only and name not in values and name != self.identity:
                values[name] = model._meta.get_field(name).get_default()  # type: ignore[union-attr]
        return values


def _take_as_it_is(field: Any, bounds: Mapping[str, Any]) -> None:
    """No space is taken off what must match from end to end, and would not."""
    text = getattr(field, "child", field)
    if str(bounds.get("items", bounds).get("pattern", "")).endswith("$"):
        text.trim_whitespace = False


def whole(pattern: re.Pattern[str], *, or_empty: bool = False) -> dict[str, str]:
    """What matches from end to end, as JSON Schema has it."""
    return {"pattern": f"^(?:{pattern.pattern})?$" if or_empty else f"^(?:{pattern.pattern})$"}


def each_whole(pattern: re.Pattern[str], *, star: bool = True) -> dict[str, Any]:
    """As `core.validation.FieldErrors.check_list` judges a list."""
    text = rf"^(?:\*|{pattern.pattern})$" if star else f"^(?:{pattern.pattern})$"
    return {"items": {"type": "string", "pattern": text}, "maxItems": LIST_LIMIT, "uniqueItems": True}


CONFIG_FIELDS = ("revision", "created_at", "updated_at")


def config_meta(model: type[ConfigRow], *writable: str, read_only: tuple[str, ...] = ()) -> Any:
    """The Meta of a `ConfigSerializer`: id, the writable fields, the read-only ones, revision and times."""
    fields = ("id", *writable, *read_only, *CONFIG_FIELDS)
    return type("Meta", (), {"model": model, "fields": fields, "read_only_fields": ("id", *read_only, *CONFIG_FIELDS)})


def policy_fields(kinds: Mapping[str, type[Policy]]) -> dict[str, Any]:
    """A field for each policy, by its name in JSON, described to OpenAPI by the policy's own class."""
    fields = {}
    for name, kind in kinds.items():
        described = extend_schema_field(policy_schema(kind))(type(kind.__name__, (Document,), {}))
        fields[camel(name)] = described(source=name) if camel(name) != name else described()
    return fields


def policy_schema(kind: type[Policy]) -> dict[str, str]:
    """A reference to its JSON schema, which stands in ``POLICY_SCHEMAS`` with all that it refers to."""
    (reference,), schemas = msgspec.json.schema_components((kind,), ref_template="#/components/schemas/{name}")
    POLICY_SCHEMAS.update(schemas)
    return reference


def classes_without_words() -> list[type]:
    """drf-spectacular's GET_LIB_DOC_EXCLUDES: bases whose docstrings do not describe what is made of them."""
    return [*get_lib_doc_excludes(), ConfigSerializer, StrictSerializer]  # type: ignore[no-untyped-call]
