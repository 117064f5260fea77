"""How `gateway_project.settings` reads the environment: each function takes a setting's name and returns its value.

What is missing or malformed raises ImproperlyConfigured with one sentence that names the setting, and that never
repeats a value that may hold a password. A setting may also be given as ``NAME_FILE``, the path of a file with its
value; the newline at the file's end is not part of it. Empty counts as not set.
"""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import environ
from django.core.exceptions import ImproperlyConfigured

_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


files: list[str] = []  # that settings were read from


def _raw(name: str) -> str:
    file = os.environ.get(f"{name}_FILE")
    if not file:
        return os.environ.get(name, "")
    files.append(str(Path(file).absolute()))
    try:
        return Path(file).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ImproperlyConfigured(f"{name}_FILE {file} cannot be read: {reason}.") from None


def text(name: str, default: str = "", *, form: str = "", says: str = "") -> str:
    """``form`` is a regular expression for the whole value, ``says`` what it demands, in words."""
    value = _raw(name)
    if not value:
        return default
    if form and not re.fullmatch(form, value, re.ASCII):
        raise ImproperlyConfigured(f"{name} is malformed: it must be {says}.")
    return value


def number(name: str, default: int, minimum: int, maximum: int) -> int:
    value = _raw(name)
    if not value:
        return default
    if not re.fullmatch(r"-?[0-9]{1,18}", value):
        raise ImproperlyConfigured(f"{name} must be a whole number, not {value!r}.")
    if not minimum <= int(value) <= maximum:
        raise ImproperlyConfigured(f"{name} must be from {minimum} to {maximum}, not {value}.")
    return int(value)


def flag(name: str, default: bool) -> bool:
    value = _raw(name)
    if not value:
        return default
    if value.lower() not in _FLAGS:
        raise ImproperlyConfigured(f"{name} must be true or false, not {value!r}.")
    return _FLAGS[value.lower()]


def address(name: str, default: str) -> str:
    """An IP address to listen on."""
    value = _raw(name) or default
    value = "127.0.0.1" if value == "localhost" else value
    try:
        return str(ip_address(value))
    except ValueError:
        raise ImproperlyConfigured(
            f"{name} must be an IP address, such as 127.0.0.1 or 0.0.0.0, not {value!r}."
        ) from None


def words(name: str, default: Sequence[str] = (), *, form: str = "", says: str = "") -> list[str]:
    """Values with commas between them; each is of the form."""
    values = [value.strip() for value in _raw(name).split(",") if value.strip()] or list(default)
    for value in values:
        if form and not re.fullmatch(form, value, re.ASCII):
            raise ImproperlyConfigured(f"{name} holds {value!r}, which is not {says}.")
    return values


def networks(name: str, default: Sequence[str]) -> list[str]:
    values = words(name, default)
    for value in values:
        try:
            ip_network(value, strict=False)
        except ValueError:
            raise ImproperlyConfigured(f"{name} holds {value!r}, which is no address or CIDR network.") from None
    return values


def url(name: str, default: str = "", *, schemes: Sequence[str], example: str) -> str:
    """A URL of one of the schemes. It may hold a password, so no message repeats any of it."""
    value = _raw(name)
    if not value:
        return default
    if not all(_is_url(each, schemes) for each in value.split(";")):  # Celery takes several brokers
        raise ImproperlyConfigured(f"{name} is malformed: it must be a URL such as {example}.")
    return value


def _is_url(value: str, schemes: Sequence[str]) -> bool:
    try:
        _ = urlsplit(value).port
    except ValueError:
        return False
    scheme, separator, _ = value.partition("://")
    return bool(separator) and scheme in schemes


def database(name: str, value: str) -> dict[str, Any]:
    """Django's form of a database URL, whichever way it was found."""
    try:
        with warnings.catch_warnings(action="ignore"):
            config: dict[str, Any] = environ.Env.db_url_config(value)
    except ValueError:
        config = {}
    engine = str(config.get("ENGINE", ""))
    if not config.get("NAME") or not engine.endswith((".postgresql", ".sqlite3")):
        raise ImproperlyConfigured(
            f"{name} is malformed: it must be a URL such as postgres://user:password@host:5432/name or sqlite:///path, "
            "with the characters / ? # @ : % of a password percent-encoded."
        )
    return config


def checked(name: str, value: Any, check: Callable[[Any], object]) -> Any:
    """The value, unless ``check`` raises ValueError: its message says why, and may repeat the value."""
    try:
        check(value)
    except ValueError as error:
        raise ImproperlyConfigured(f"{name} is malformed: {error}") from None
    return value
