"""Values and names of fields in words, for history, conflicts and dialogs."""

import json
import re
from datetime import datetime
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db import models
from django.utils.dateparse import parse_datetime

_ABBREVIATIONS = {"url": "URL", "id": "ID", "ms": "(ms)", "s": "(s)"}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")  # as `ConfigRow.recorded` writes it

_REFUSALS = tuple(  # of msgspec and Django
    (re.compile(pattern), words)
    for pattern, words in (
        (r"Expected `(?:int|float)` >= (\S+)\.", r"At least \1."),
        (r"Expected `(?:int|float)` > (\S+)\.", r"More than \1."),
        (r"Expected `(?:int|float)` <= (\S+)\.", r"At most \1."),
        (r"Expected `str` of length >= (\d+)\.", r"At least \1 characters."),
        (r"Expected `str` of length <= (\d+)\.", r"At most \1 characters."),
        (r"Expected `(?:array|object)` of length >= (\d+)\.", r"At least \1 of them."),
        (r"Expected `(?:array|object)` of length <= (\d+)\.", r"At most \1 of them."),
        (r"Expected `str` matching regex '\^secret://.*", "Write a reference, such as secret://env/UPSTREAM_ORDERS."),
        (r"Expected `str` matching regex .*", "It is not written as it has to be."),
        (r"Invalid enum value (.+)\.", r"\1 is not one of those that can be chosen."),
        (r"Ensure this value is greater than or equal to (\S+)\.", r"At least \1."),
        (r"Ensure this value is less than or equal to (\S+)\.", r"At most \1."),
    )
)


def label(model: type[models.Model] | None, name: str) -> str:
    """``default_url`` → ``Default URL``; ``service_id`` → ``Service`` where the model knows it as a reference."""
    try:
        field = model._meta.get_field(name) if model else None
    except FieldDoesNotExist:
        field = None
    words = (field.name if field is not None else name.removesuffix("_id")).split("_")
    text = " ".join(_ABBREVIATIONS.get(word, word) for word in words)
    return text[0].upper() + text[1:]


def member_words(name: str) -> str:
    """``maxWaitMs`` → ``max wait (ms)``: a member of a document."""
    first, *others = re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: " " + found[1].lower(), name).split(" ")
    return " ".join([first, *(_ABBREVIATIONS.get(word, word) for word in others)])


def refusal_in_words(refusal: str) -> str:
    """A sentence of the libraries that read documents and numbers, as one says it to somebody who filled in a form."""
    for pattern, words in _REFUSALS:
        if found := pattern.fullmatch(refusal):
            return found.expand(words)
    return refusal


def readable(value: Any) -> str:
    """A stored value as an admin reads it."""
    if value is None or value == "":
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False) if value else "none"
    if isinstance(value, str) and _MOMENT.match(value):
        value = parse_datetime(value) or value
    return f"{value:%Y-%m-%d %H:%M:%S} UTC" if isinstance(value, datetime) else str(value)


def count_of(number: int, singular: str, plural: str = "") -> str:
    """``1 route``, ``3 routes``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def kind_name(kind: str) -> str:
    """``queue_route`` → ``queue route``."""
    return "administrator" if kind == "admin" else kind.replace("_", " ").replace("api key", "API key")
