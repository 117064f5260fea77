"""What use-cases check before they store: each wrong field gets its sentences, and one answer names all of them."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Model

from core.faults import ClientFault
from core.models import ConfigRow
from core.policies import P, Policy, PolicyError, read

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,31}")
METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")  # RFC 9110 section 9.1 allows more; no method in use needs it
_RESERVED_NAMES = re.compile(r"tasks|management|auth|v[0-9]+")
LIST_LIMIT = 1000


class FieldErrors:
    """Collects sentences by field name (the model's attribute) and raises them together."""

    def __init__(self) -> None:
        self._errors: dict[str, list[str]] = {}

    def add(self, field: str, sentence: str) -> None:
        self._errors.setdefault(field, []).append(sentence)

    def check(self, field: str, test: Callable[[], object]) -> None:
        """Run a test that raises ValueError, whose message becomes the field's sentence; not on a field known wrong."""
        if self.has(field):
            return
        try:
            test()
        except ValueError as error:
            self.add(field, as_sentence(error))

    def check_columns(self, row: ConfigRow) -> None:
        """What the model says of each column: presence, length, range, choices, and text that can be stored."""
        columns = [field for field in row._meta.concrete_fields if not field.is_relation]
        for field in columns:
            value = field.value_from_object(row)
            if value is None and not field.null:
                self.add(field.name, "This field may not be null.")
            elif isinstance(value, str) and not is_storable(value):
                self.add(field.name, "The text holds a NUL character or half of a surrogate pair.")
        try:
            row.clean_fields(
                exclude={field.name for field in row._meta.concrete_fields if field.is_relation or self.has(field.name)}
            )
        except ValidationError as error:
            for name, sentences in error.message_dict.items():
                self._errors.setdefault(name, []).extend(sentences)

    def check_list(self, field: str, values: Any, pattern: re.Pattern[str], example: str, *, star: bool = True) -> None:
        """A list of different strings that each match ``pattern``; with ``star``, ``["*"]`` stands for all of them."""
        if self.has(field):
            return
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            self.add(field, "This must be a list of strings.")
            return
        if len(values) > LIST_LIMIT:
            self.add(field, f"At most {LIST_LIMIT} entries are allowed.")
            return
        for value in values:
            if not (star and value == "*") and not pattern.fullmatch(value):
                self.add(field, f"{value[:80]!r} is not valid here: write something like {example}.")
        if len(set(values)) < len(values):
            self.add(field, "An entry stands here twice.")

    def has(self, field: str) -> bool:
        return field in self._errors

    def raise_any(self) -> None:
        """Raise ``invalid_field`` (422) with ``errors``: {field: [sentence, …]}, if there is anything to say."""
        if self._errors:
            names = ", ".join(sorted(self._errors))
            raise ClientFault("invalid_field", f"Not valid: {names}.", members={"errors": self._errors})


def invalid(field: str, sentence: str) -> ClientFault:
    return ClientFault("invalid_field", f"Not valid: {field}.", members={"errors": {field: [sentence]}})


def taken(field: str, sentence: str) -> ClientFault:
    """A value that must be unique is in use already (409)."""
    return ClientFault("conflict", sentence, members={"errors": {field: [sentence]}})


def as_sentence(error: object) -> str:
    text = str(error).strip() or "The value is not valid"
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def is_storable(text: str) -> bool:
    """PostgreSQL stores neither NUL nor unpaired surrogates."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def service_name(name: Any) -> None:
    """A name that services and queue routes share one namespace of. Raises ValueError."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError("a name has 1 to 63 lower-case letters, digits and hyphens, and begins with a letter or digit")
    if _RESERVED_NAMES.fullmatch(name):
        raise ValueError(f"{name!r} is a word of the gateway's own paths: choose another name")


def version_name(name: Any) -> None:
    """Raises ValueError."""
    if not isinstance(name, str) or not VERSION.fullmatch(name):
        raise ValueError(
            "a version has 1 to 32 letters, digits, dots, underscores and hyphens, and begins with a letter or digit"
        )


def assign(row: ConfigRow, values: Mapping[str, Any], writable: Collection[str]) -> None:
    """Set attributes of a row. Anything but ``writable`` is a mistake of the caller: TypeError."""
    unknown = sorted(set(values) - set(writable))
    if unknown:
        raise TypeError(f"{type(row).__name__} has no writable field {', '.join(unknown)}")
    for name, value in values.items():
        setattr(row, name, value)


# --- policies ------------------------------------------------------------------------------------------------------
def check_policies(row: Model, kinds: Mapping[str, type[Policy]], errors: FieldErrors) -> None:
    """Each of a row's policies (`core.policies`) by the name of its column."""
    for field, kind in kinds.items():
        document = getattr(row, field)
        if document is not None:
            check_document(field, kind, document, errors)


def check_document(field: str, kind: type[P], document: object, errors: FieldErrors) -> P | None:
    """The sentence stands at the member that is wrong: ``health_checks.active.intervalS``. None: there is one."""
    if not all(is_storable(text) for text in texts_in(document)):
        errors.add(field, "A text holds a NUL character or half of a surrogate pair.")
        return None
    try:
        return read(kind, document)
    except PolicyError as error:
        errors.add(f"{field}.{error.field}" if error.field else field, as_sentence(error.sentence))
        return None


def texts_in(document: object) -> Iterator[str]:
    """Every string of a JSON document, names of members too."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, Mapping):
        for name, value in document.items():
            yield str(name)
            yield from texts_in(value)
    elif isinstance(document, list | tuple):
        for value in document:
            yield from texts_in(value)
