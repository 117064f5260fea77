"""Forms for traffic policies, made of the policies' own classes (`routing.policies`).

A member of a policy becomes a field by its type; what nests becomes a part that can be switched on; a list of documents
becomes rows of inputs where their members are texts, else JSON. Names of fields are paths with ``__`` between members.
`WORDS` says what a plain name cannot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import new_class
from typing import Any, ClassVar, Self

import msgspec
from django import forms
from django.conf import settings
from django.forms import BoundField
from msgspec import inspect

from access.models import PolicyBundle
from admin_panel.fields import (
    ChipInput,
    Column,
    ConditionsField,
    DecimalField,
    DocumentField,
    ListField,
    NumberField,
    RowsField,
    SetField,
    TextField,
)
from admin_panel.forms import RowForm
from admin_panel.policy_words import (
    CHOICES,
    CHOICES_IN_ORDER,
    COLUMNS,
    COUNTS,
    EMPTY,
    EXAMPLES,
    ORDER,
    SETS,
    SUGGESTED,
    TITLES,
    WITHOUT,
    WORDS,
)
from admin_panel.wording import refusal_in_words
from core.faults import GatewayFault
from core.policies import Policy
from routing.models import Route
from routing.policies import FieldCondition, UpstreamCredential

_UNITS = {"_ms": "ms", "_s": "seconds", "_bytes": "bytes", "_percent": "%"}
_LONG_TEXT = 2001  # characters from which on a text gets several lines
_QUOTED = re.compile(r"'([^']+)'")
_INDEX = re.compile(r"\[(\d+)\]\.?(.*)")
_NAMES = ("name", "key", "header", "claim", "path")  # members that name an entry of a list
_OF_ITS_SERVICE = ("cors", "retries", "caching", "compression", "websockets")  # where a route says nothing


@dataclass(slots=True)
class Member:
    """One member of a policy, or of a document in it."""

    path: tuple[str, ...]  # as JSON names it
    form_name: str
    default: Any  # as JSON; None too where it is required
    field: forms.Field


@dataclass(slots=True)
class Part:
    """Members that belong together. ``switch`` is the field that says whether they count; a policy's own have none."""

    title: str
    switch: str
    path: tuple[str, ...]
    members: list[Member] = field(default_factory=list)


class PolicyForm(RowForm):
    """Edits one policy of a row. Built by `policy_form`."""

    policy: ClassVar[str]
    parts: ClassVar[list[Part]]
    choice: ClassVar[str] = ""  # a field of which some values leave others out
    counts_with: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # the values with which each of those counts

    def clean(self) -> dict[str, Any]:
        """What does not count is not said, whatever stands in it."""
        chosen = self.cleaned_data.get(self.choice)
        for name, values in self.counts_with.items():
            if chosen is not None and chosen not in values:
                self.errors.pop(name, None)
                self.cleaned_data[name] = None
        return self.cleaned_data

    @classmethod
    def of(cls, row: Any, data: Mapping[str, Any] | None = None) -> Self:
        document = getattr(row, cls.policy)
        initial: dict[str, Any] = {"revision": row.revision}
        for part in cls.parts:
            inner = _at(document, part.path)
            if part.switch:
                initial[part.switch] = inner is not None
            for member in part.members:
                value = _at(inner, member.path[len(part.path) :]) if member.path else document
                initial[member.form_name] = member.default if value is None else value
        return cls(data, initial=initial)

    def changes(self) -> dict[str, Any]:
        """The whole document, without members that say what is so anyway."""
        if not self.parts:  # a list of documents
            return {self.policy: self.cleaned_data["document"] or []}
        document: dict[str, Any] = {}
        for part in self.parts:
            if not part.members or (part.switch and not self.cleaned_data[part.switch]):
                continue
            inner = document
            for name in part.path:
                inner = inner.setdefault(name, {})
            for member in part.members:
                value = self.cleaned_data[member.form_name]
                is_said = value not in (None, "") and not (value == [] and member.default is None)
                if is_said and value != member.default:
                    inner[member.path[-1]] = value
        return {self.policy: document}

    def label_of(self, name: str) -> str:
        return TITLES[name][0]

    def take(self, fault: GatewayFault) -> None:
        """``retries.baseMs`` stands at the field ``base_ms``; ``conditions.headers[0].matches`` at ``headers``."""
        errors: Mapping[str, list[str]] = fault.members.get("errors", {})
        for name, sentences in errors.items():
            member = _INDEX.sub("", name).removeprefix(f"{self.policy}.")
            entry = _entry(name)
            form_name = next(
                (each.form_name for part in self.parts for each in part.members if ".".join(each.path) == member), None
            )
            if form_name is None:
                form_name = self._field_of(name)
            for sentence in map(refusal_in_words, sentences):
                place = form_name or self._field_with(sentence)
                self.add_error(
                    place, entry + sentence if place or member in ("", self.policy) else f"{member}: {sentence}"
                )
        if not errors:
            self.add_error(None, fault.detail)

    def _field_of(self, name: str) -> str | None:
        """Of a refusal that names no member of the policy."""
        if not self.parts and name.startswith(self.policy):
            return "document"
        return next((each for each in (name, name.removesuffix("_id")) if each in self.fields), None)

    def _field_with(self, sentence: str) -> str | None:
        """Where it was typed what a refusal of the whole policy quotes, if that is in one field alone."""
        quoted = _QUOTED.search(sentence)
        if quoted is None:
            return None
        found = [
            name
            for name, typed in self.cleaned_data.items()
            if typed == quoted[1] or (isinstance(typed, list) and quoted[1] in typed)
        ]
        return found[0] if len(found) == 1 else None

    def sections(self) -> Iterator[Section]:
        """The parts that have fields, for the template."""
        if not self.parts:
            yield Section("", None, [[self["document"]]])
        for part in self.parts:
            if not part.members and not part.switch:
                continue
            bound = [self[member.form_name] for member in self._in_order(part)]
            switch = self[part.switch] if part.switch else None
            if bound and bound[0].name.endswith("enabled"):  # the policy's own switch
                switch, bound = bound[0], bound[1:]
            yield Section("" if switch else part.title, switch, list(in_lines(bound)))

    def _in_order(self, part: Part) -> list[Member]:
        places = {name: place for place, name in enumerate(ORDER.get(self.policy, ()))}
        return sorted(part.members, key=lambda member: places.get(member.form_name, len(places)))


@dataclass(frozen=True, slots=True)
class Section:
    """``switch`` says whether the fields count. ``lines`` are the fields, short ones side by side. ``choice`` names the
    field that says which of them count, as `PolicyForm.counts_with` has it."""

    title: str
    switch: BoundField | None
    lines: list[list[BoundField]]
    choice: str = ""


def in_lines(fields: list[BoundField]) -> Iterator[list[BoundField]]:
    """Short ones side by side."""
    line: list[BoundField] = []
    for each in fields:
        is_short = isinstance(each.field, NumberField | DecimalField | forms.ChoiceField)
        if line and not is_short:
            yield line
            line = []
        if is_short:
            line.append(each)
        else:
            yield [each]
    if line:
        yield line


def _entry(name: str) -> str:
    """``headers[1].matches`` → ``Entry 2, matches: ``."""
    found = _INDEX.search(name)
    if found is None:
        return ""
    return f"Entry {int(found[1]) + 1}, {found[2]}: " if found[2] else f"Entry {int(found[1]) + 1}: "


def _at(document: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if not isinstance(document, Mapping) or document.get(name) is None:
            return None
        document = document[name]
    return document


def policy_form(name: str, kind: type[Policy]) -> type[PolicyForm]:
    """The form of a policy; ``name`` is its attribute on the row."""
    parts: list[Part] = []
    _collect(name, kind, (), Part("", "", ()), parts)
    declared: dict[str, Any] = {}
    for part in parts:
        if part.switch:
            declared[part.switch] = forms.BooleanField(required=False, label=part.title)
        for member in part.members:
            declared[member.form_name] = member.field
    return _made({"policy": name, "parts": parts, **declared})


class CredentialsForm(PolicyForm):
    """A service's upstream credentials: a list of documents."""

    policy = "upstream_credentials"
    parts: ClassVar[list[Part]] = []
    document = RowsField(
        (Column("header", *COLUMNS["header"]), Column("value", *COLUMNS["upstream_credentials.value"])),
        label=WORDS["upstream_credentials"][0],
        help_text=WORDS["upstream_credentials"][1],
    )

    @classmethod
    def of(cls, row: Any, data: Mapping[str, Any] | None = None) -> Self:
        return cls(data, initial={"revision": row.revision, "document": row.upstream_credentials})


def _made(members: dict[str, Any]) -> type[PolicyForm]:
    made: type[PolicyForm] = new_class("PolicyForm", (PolicyForm,), exec_body=lambda space: space.update(members))
    return made


def _collect(policy: str, kind: Any, path: tuple[str, ...], part: Part, parts: list[Part]) -> None:
    """Members of a document in order; documents within it become parts of their own, after it."""
    parts.append(part)
    for each in inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        here = (*path, each.encode_name)
        name = "__".join((*(_snake(step) for step in path), each.name))
        declared, is_optional = _without_none(each.type)
        if isinstance(declared, inspect.StructType):
            title = _words(policy, name)[0]
            switch = f"{name}__on" if is_optional else ""
            _collect(policy, declared.cls, here, Part(title, switch, here), parts)
            continue
        default = _default(each)
        part.members.append(Member(here, name, default, _field(policy, name, declared, is_optional)))
    if not part.members:  # its own parts say all
        part.switch = ""


def _default(member: inspect.Field) -> Any:
    """As JSON; None too where it is required."""
    if member.default_factory is not msgspec.NODEFAULT:
        return msgspec.to_builtins(member.default_factory())
    default = None if member.default is msgspec.NODEFAULT else msgspec.to_builtins(member.default)
    return list(default) if isinstance(default, tuple) else default


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: "_" + found[1].lower(), name)


def _without_none(declared: Any) -> tuple[Any, bool]:
    if isinstance(declared, inspect.UnionType):
        others = [each for each in declared.types if not isinstance(each, inspect.NoneType)]
        if len(others) == 1 and len(others) < len(declared.types):
            return others[0], True
    return declared, False


def _words(policy: str, name: str) -> tuple[str, str]:
    """Label and hint: as told for this policy, for a member of this name anywhere, or the name itself."""
    last = name.rpartition("__")[2]
    told = WORDS.get(f"{policy}.{name}") or WORDS.get(last)
    if told is not None:
        return told
    for ending in _UNITS:
        last = last.removesuffix(ending)
    return last.replace("_", " ").capitalize(), ""


def _field(policy: str, name: str, declared: Any, is_optional: bool = False) -> forms.Field:
    label, hint = _words(policy, name)
    said: dict[str, Any] = {"label": label, "help_text": hint}
    if isinstance(declared, inspect.BoolType):
        return forms.BooleanField(required=False, **said)
    if isinstance(declared, inspect.IntType | inspect.FloatType):
        kind = NumberField if isinstance(declared, inspect.IntType) else DecimalField
        number = kind(_unit(name), required=False, **said)
        if setting := EMPTY.get(f"{policy}.{name}"):
            number.widget.attrs["placeholder"] = str(getattr(settings, setting))
        return number
    if isinstance(declared, inspect.LiteralType):
        order = CHOICES_IN_ORDER.get(f"{policy}.{name}", declared.values)
        choices = [(value, CHOICES.get(str(value), str(value).replace("_", " "))) for value in order]
        if is_optional:
            choices.insert(0, ("", CHOICES.get(f"{policy}.{name}", "not said")))
        return forms.ChoiceField(
            choices=choices,
            required=not is_optional,
            widget=forms.Select(attrs={"class": "form-select control-short"}),
            **said,
        )
    if isinstance(declared, inspect.VarTupleType):
        if f"{policy}.{name}" in SETS:
            return SetField(SETS[f"{policy}.{name}"], **said)
        if isinstance(declared.item_type, inspect.StrType | inspect.LiteralType):
            return ListField(widget=ChipInput(suggest=SUGGESTED.get(f"{policy}.{name}", "")), **said)
        return _rows(policy, name, declared.item_type, said)
    if isinstance(declared, inspect.StrType):
        if (declared.max_length or 0) >= _LONG_TEXT:
            area = forms.Textarea(attrs={"rows": 6, "class": "form-control control-mono", "spellcheck": "false"})
            return forms.CharField(required=False, widget=area, **said)
        return TextField(mono=name != "message", **said)
    return DocumentField(example=EXAMPLES.get(f"{policy}.{name}", ""), **said)


def _unit(name: str) -> str:
    last = name.rpartition("__")[2]
    unit = next((unit for ending, unit in _UNITS.items() if last.endswith(ending) or last == ending[1:]), "")
    return unit or COUNTS.get(last, "")


def _rows(policy: str, name: str, kind: Any, said: dict[str, Any]) -> forms.Field:
    """Rows of inputs where every member of the documents is a text."""
    if kind.cls is FieldCondition:
        return ConditionsField(**said)
    if any(not isinstance(each.type, inspect.StrType) for each in kind.fields):
        return DocumentField(example=EXAMPLES.get(f"{policy}.{name}", ""), **said)
    return RowsField([Column(each.encode_name, *COLUMNS[each.name]) for each in kind.fields], **said)


def without(row: Any, name: str) -> str:
    """What holds where the row says nothing of a policy, in words."""
    if row.kind == PolicyBundle.kind:
        return "not said here"
    if isinstance(row, Route) and name in _OF_ITS_SERVICE:
        return "as its service says"
    if name == "circuit_breaker":
        return f"{settings.CIRCUIT_BREAKER_FAILURES} failures in a row, then {settings.CIRCUIT_BREAKER_TIMEOUT} s"
    if name == "health_checks":
        endpoint = getattr(row, "health_endpoint", "")
        return f"{endpoint} every 10 s" if endpoint else "not probed"
    return WITHOUT[name]


def summary(policy: type[Policy] | None, document: Any) -> str:
    """A policy in a line: what it says beyond its defaults; empty for one that is absent."""
    if document is None or document == []:
        return ""
    if policy is UpstreamCredential:
        return ", ".join(str(each.get("header", "")) for each in document if isinstance(each, Mapping))
    members = inspect.type_info(policy).fields if policy is not None else ()  # type: ignore[attr-defined]
    defaults = {each.encode_name: _default(each) for each in members}  # databases keep no order of members
    names = (*defaults, *sorted(set(document) - set(defaults)))
    ordered = {name: document[name] for name in names if name in document and document[name] != defaults.get(name, ...)}
    return ", ".join(_said(ordered)) or "on"


def _said(document: Any) -> Iterator[str]:
    for name, value in document.items():
        words = re.sub(r"([A-Z])", lambda found: " " + found[1].lower(), name)
        for ending, unit in ((" ms", " ms"), (" s", " s"), (" bytes", " bytes"), (" percent", " %")):
            if words.endswith(ending):
                words, value = words.removesuffix(ending), f"{value}{unit}"
                break
        if isinstance(value, Mapping):
            inner = ", ".join(_said(dict(sorted(value.items()))))
            yield f"{words} ({inner})" if inner else words
        elif value is True:
            yield words
        elif value is False:
            yield f"not {words}"
        elif isinstance(value, list):
            names = [_name(each) for each in value]
            yield f"{words} {', '.join(names)}" if all(names) else f"{len(value)} {words}"
        elif words in ("strategy", "message", "credentials"):
            yield CHOICES.get(value, str(value).replace("_", " "))
        else:
            yield f"{words} {value}"


def _name(entry: Any) -> str:
    """What an entry of a list is called; empty where nothing in it is a name."""
    if isinstance(entry, Mapping):
        return next((str(entry[name]) for name in _NAMES if name in entry), "")
    return str(entry)
