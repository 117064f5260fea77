"""What Cache-Control and its kin say: lists of directives, read leniently where that is safe.

Names are lower case; a directive without an argument has an empty one. What cannot be understood makes an answer
staler, never fresher (RFC 9111 section 4.2.1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

Directives = Mapping[str, str]
NOTHING: Directives = {}
MOST = 2**31  # seconds: "if a cache receives a value greater than …" (RFC 9111 section 1.2.2)
_INVALID = "invalid"

# Clients write these too, so it must be linear: it is matched where the last one ended, and never searched for.
_DIRECTIVE = re.compile(
    r"""[^!#$%&'*+.^_`|~0-9A-Za-z-]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:=(?:"((?:[^"\\]|\\.)*)"|([^",\s]*)))?([^,]*)"""
)


@lru_cache(maxsize=1024)
def cache_control(value: bytes) -> Directives:
    """Directives of a Cache-Control field (RFC 9111 section 5.2). Of one that stands twice with two arguments nobody
    knows which is meant: its argument is no number, which makes the answer stale."""
    directives: dict[str, str] = {}
    text = value.decode("latin-1")
    at = 0
    while found := _DIRECTIVE.match(text, at):
        at = found.end()
        name, quoted, plain, rest = found.groups("")
        name, argument = name.lower(), re.sub(r"\\(.)", r"\1", quoted) or plain
        if rest.strip():
            argument = _INVALID
        if directives.get(name, argument) != argument:
            argument = _INVALID
        directives[name] = argument
    return directives


def seconds(directives: Directives, name: str) -> int | None:
    """The argument in seconds; 0 for one that is no number, None without the directive."""
    argument = directives.get(name)
    if argument is None:
        return None
    if not argument.isdecimal() or not argument.isascii():
        return 0
    return MOST if len(argument) > 10 else min(int(argument), MOST)


# --- targeted fields: dictionaries of structured fields (RFC 9213 section 2.1, RFC 9651 section 4.2.2) ---
_KEY = re.compile(r"[a-z*][a-z0-9_\-.*]*")
_BARE = re.compile(
    r"""(?P<number>-?[0-9]{1,15}(?:\.[0-9]{1,3})?)
      |"(?P<string>(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"
      |(?P<token>[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*)
      |\?(?P<boolean>[01])
      |:(?P<bytes>[A-Za-z0-9+/=]*):""",
    re.VERBOSE,
)
_SEPARATOR = re.compile(r"[ \t]*(?:,[ \t]*|$)")


@lru_cache(maxsize=1024)
def targeted(value: bytes) -> Directives | None:
    """Directives of a targeted field such as CDN-Cache-Control; None for one that is empty or malformed, which is to
    be ignored altogether. Parameters are ignored."""
    text = value.decode("latin-1").strip(" ")
    if not text:
        return None
    directives: dict[str, str] = {}
    at = 0
    while at < len(text):
        key = _KEY.match(text, at)
        if key is None:
            return None
        at = key.end()
        argument: str | None = ""
        if text[at : at + 1] == "=":
            item = _item(text, at + 1)
            if item is None:
                return None
            argument, at = item
        parameters = _parameters(text, at)
        if parameters is None:
            return None
        at = parameters
        directives.pop(key[0], None)
        if argument is not None:
            directives[key[0]] = argument
        separator = _SEPARATOR.match(text, at)
        if separator is None or (separator.end() == len(text) and "," in separator[0]):
            return None
        at = separator.end()
    return directives


def _item(text: str, at: int) -> tuple[str | None, int] | None:
    """An argument and where it ends. The argument is None for ``?0``, which takes the directive back."""
    if text[at : at + 1] == "(":
        return _inner_list(text, at + 1)
    bare = _BARE.match(text, at)
    if bare is None:
        return None
    if bare["boolean"] is not None:
        return ("" if bare["boolean"] == "1" else None), bare.end()
    if bare["number"] is not None:
        return bare["number"], bare.end()
    return "".join(each for each in (bare["string"], bare["token"]) if each) or _INVALID, bare.end()


def _inner_list(text: str, at: int) -> tuple[str | None, int] | None:
    while True:
        while text[at : at + 1] == " ":
            at += 1
        if text[at : at + 1] == ")":
            return _INVALID, at + 1
        item = _item(text, at) if text[at : at + 1] != "(" else None
        end = _parameters(text, item[1]) if item is not None else None
        if end is None or text[end : end + 1] not in (" ", ")"):
            return None
        at = end


def _parameters(text: str, at: int) -> int | None:
    while text[at : at + 1] == ";":
        at += 1
        while text[at : at + 1] == " ":
            at += 1
        key = _KEY.match(text, at)
        if key is None:
            return None
        at = key.end()
        if text[at : at + 1] == "=":
            bare = _BARE.match(text, at + 1)
            if bare is None:
                return None
            at = bare.end()
    return at
