"""Fields and widgets of the panel's forms."""

import re
from collections.abc import Iterable
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


class NumberField(forms.IntegerField):
    """A whole number with its unit shown behind it; empty is None.

    Not ``type="number"``: browsers send nothing at all for what is no number there, which would mean "none".
    """

    def __init__(self, unit: str = "", **options: Any) -> None:
        super().__init__(widget=forms.TextInput(attrs={"inputmode": "numeric", "autocomplete": "off"}), **options)
        self.unit = unit


class TextField(forms.CharField):
    """A text that the use-case judges. ``mono`` for paths, URLs and names that machines read; ``suggest`` as above."""

    def __init__(self, *, mono: bool = False, suggest: str = "", placeholder: str = "", **options: Any) -> None:
        attrs = {"class": "form-control control-mono" if mono else "form-control", "autocomplete": "off"}
        super().__init__(required=False, widget=forms.TextInput(attrs=attrs), **options)
        self.suggest = suggest
        if placeholder:
            self.widget.attrs["placeholder"] = placeholder
