"""Fields and widgets of the panel's forms."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django import forms

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
_SEPARATORS = re.compile(r"[\s,]+")


class ChipInput(forms.TextInput):
    """A text input with a comma-separated value, which `<chip-input>` turns into chips.

    ``suggest`` is the kind of names that `views.suggestions` proposes while somebody types.
    """

    def __init__(self, suggest: str = "", placeholder: str = "") -> None:
        super().__init__(attrs={"class": "form-control control-mono", "autocomplete": "off"})
        self.suggest = suggest
        self.placeholder = placeholder


class ListField(forms.CharField):
    """Words with commas or spaces between them, as a list of strings. ``none`` is what no word at all stands for."""

    def __init__(self, *, none: Iterable[str] = (), **options: Any) -> None:
        super().__init__(required=False, **options)
        self.none = list(none)

    def to_python(self, value: Any) -> Any:
        words = [word for word in _SEPARATORS.split(value or "") if word]
        return words or list(self.none)

    def prepare_value(self, value: Any) -> Any:
        return ", ".join(value) if isinstance(value, list) else value


class MethodsField(forms.MultipleChoiceField):
    """HTTP methods to tick. ``none`` is what no tick stands for, which the form says in words."""

    def __init__(self, *, none: Iterable[str] = (), **options: Any) -> None:
        super().__init__(
            required=False,
            choices=[(method, method) for method in METHODS],
            widget=forms.CheckboxSelectMultiple(attrs={"group": "mono"}),
            **options,
        )
        self.none = list(none)

    def prepare_value(self, value: Any) -> Any:
        self.choices = [(method, method) for method in dict.fromkeys((*METHODS, *(value or ()))) if method != "*"]
        return [method for method in value or () if method != "*"]

    def to_python(self, value: Any) -> list[str]:
        return super().to_python(value) or list(self.none)

    def valid_value(self, value: str) -> bool:
        return True  # the use-case judges; a stored method that stands in no list here must survive an edit


class SetField(forms.MultipleChoiceField):
    """Some of few known words."""

    def __init__(self, words: Sequence[str], **options: Any) -> None:
        choices = [(word, word) for word in words]
        super().__init__(choices=choices, required=False, widget=forms.CheckboxSelectMultiple, **options)


class NumberField(forms.IntegerField):
    """A whole number with its unit shown behind it; empty is None.

    Not ``type="number"``: browsers send nothing at all for what is no number there, which would mean "none".
    """

    def __init__(self, unit: str = "", **options: Any) -> None:
        super().__init__(widget=forms.TextInput(attrs={"inputmode": "numeric", "autocomplete": "off"}), **options)
        self.unit = unit


class MomentField(forms.CharField):
    """A day, or a day and a time, in UTC; empty is None."""

    def __init__(self, **options: Any) -> None:
        attrs = {"class": "form-control", "autocomplete": "off", "placeholder": "2026-12-31"}
        super().__init__(required=False, widget=forms.TextInput(attrs=attrs), **options)

    def to_python(self, value: Any) -> Any:
        text = (super().to_python(value) or "").strip()
        if not text:
            return None
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise forms.ValidationError("Write a day, as 2026-12-31, or a day and a time.") from None
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    def prepare_value(self, value: Any) -> Any:
        if not isinstance(value, datetime):
            return value
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ").removesuffix(" 00:00:00")


class TextField(forms.CharField):
    """A text that the use-case judges. ``mono`` for paths, URLs and names that machines read; ``suggest`` as above."""

    def __init__(self, *, mono: bool = False, suggest: str = "", placeholder: str = "", **options: Any) -> None:
        attrs = {"class": "form-control control-mono" if mono else "form-control", "autocomplete": "off"}
        super().__init__(required=False, widget=forms.TextInput(attrs=attrs), **options)
        self.suggest = suggest
        if placeholder:
            self.widget.attrs["placeholder"] = placeholder


class DocumentField(forms.CharField):
    """JSON, written by hand. ``example`` is shown below it."""

    default_error_messages = {"invalid": "Line %(line)s, column %(column)s: %(reason)s."}

    def __init__(self, *, example: str = "", **options: Any) -> None:
        super().__init__(required=False, widget=forms.Textarea(attrs={"rows": 4, "spellcheck": "false"}), **options)
        self.widget.attrs["class"] = "form-control control-mono control-document"
        self.example = example

    def to_python(self, value: Any) -> Any:
        if value in self.empty_values:
            return None
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            place = {"line": error.lineno, "column": error.colno, "reason": error.msg}
            raise forms.ValidationError(self.error_messages["invalid"], code="invalid", params=place) from None

    def prepare_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return value
        return json.dumps(value, indent=2, ensure_ascii=False) if value else ""


@dataclass(frozen=True, slots=True)
class Column:
    """One input of each row. ``choices`` makes it a select."""

    name: str
    label: str
    placeholder: str = ""
    choices: tuple[tuple[str, str], ...] = ()


class RowsWidget(forms.Widget):
    """Documents as rows of inputs (includes/rows.html), which `<row-list>` adds and removes."""

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.columns = columns

    def value_from_datadict(self, data: Any, files: Any, name: str) -> list[dict[str, str]]:
        lists = [_all_of(data, f"{name}__{column.name}") for column in self.columns]
        names = [column.name for column in self.columns]
        return [dict(zip(names, texts, strict=True)) for texts in zip(*lists, strict=False)]

    def value_omitted_from_data(self, data: Any, files: Any, name: str) -> bool:
        return f"{name}__{self.columns[0].name}" not in data

    def lines(self, rows: Iterable[Mapping[str, str]]) -> list[list[tuple[Column, str]]]:
        """Each row's columns and texts."""
        return [[(column, row.get(column.name, "")) for column in self.columns] for row in rows]


def _all_of(data: Any, name: str) -> list[str]:
    if hasattr(data, "getlist"):
        return list(data.getlist(name))
    value = data.get(name, [])
    return value if isinstance(value, list) else [value]


class RowsField(forms.Field):
    """A list of documents whose members are all texts; empty rows do not count."""

    def __init__(self, columns: Sequence[Column], **options: Any) -> None:
        super().__init__(required=False, widget=RowsWidget(columns), **options)
        self.columns = columns

    def to_python(self, value: Any) -> Any:
        return [self.document(row) for row in value or () if any(row[name].strip() for name in self._typed())]

    def prepare_value(self, value: Any) -> Any:
        return [self.row(document) for document in value or () if isinstance(document, Mapping)]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(self.to_python(data) != initial)

    def document(self, row: Mapping[str, str]) -> dict[str, Any]:
        return {column.name: row[column.name] for column in self.columns}

    def row(self, document: Mapping[str, Any]) -> Mapping[str, str]:
        return {column.name: str(document.get(column.name, "")) for column in self.columns}

    def _typed(self) -> list[str]:
        return [column.name for column in self.columns if not column.choices]


_HOW = (
    ("equals", "is"),
    ("prefix", "begins with"),
    ("matches", "matches"),
    ("present", "is there"),
    ("absent", "is not there"),
)


class ConditionsField(RowsField):
    """`routing.policies.FieldCondition`: a name, how it is compared, with what."""

    def __init__(self, **options: Any) -> None:
        columns = (
            Column("name", "Name", "x-beta"),
            Column("how", "How", choices=_HOW),
            Column("value", "Value", "yes"),
        )
        super().__init__(columns, **options)

    def document(self, row: Mapping[str, str]) -> dict[str, Any]:
        if row["how"] in ("present", "absent"):
            return {"name": row["name"], "present": row["how"] == "present"}
        return {"name": row["name"], row["how"] or "equals": row["value"]}

    def row(self, document: Mapping[str, Any]) -> Mapping[str, str]:
        if "how" in document:  # as it was typed
            return document
        how = next((how for how in ("equals", "prefix", "matches") if document.get(how) is not None), "")
        if how:
            return {"name": document.get("name", ""), "how": how, "value": str(document[how])}
        return {
            "name": document.get("name", ""),
            "how": "present" if document.get("present") else "absent",
            "value": "",
        }


class DecimalField(forms.FloatField):
    """A number with its unit; empty is None."""

    def __init__(self, unit: str = "", **options: Any) -> None:
        super().__init__(widget=forms.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off"}), **options)
        self.unit = unit

    def prepare_value(self, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value
