"""What logs and audit details must not hold: keys, tokens, cookies, e-mail addresses, card numbers (A22).

`mask` takes a text and gives it back, with stars where such a thing stood. What is looked for is the operator's to say
(MASK, MASK_PATTERNS), once for each process: `install`. Texts without any of it cost one look.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

CLASSES = ("keys", "tokens", "cookies", "emails", "cards")
_STARS = "***"
_LONGEST = 65_536  # of a text; what follows is cut off

Replace = Callable[[re.Match[str]], str]

_DIGITS = b"0123456789"
_ONCE = bytes.maketrans(_DIGITS, bytes(range(10)))
_TWICE = bytes.maketrans(_DIGITS, bytes(sum(divmod(2 * digit, 10)) for digit in range(10)))
_SHORTEST_CARD, _LONGEST_CARD = 13, 19


def _card(match: re.Match[str]) -> str:
    return _STARS if _is_card(match[0].encode("ascii")) else match[0]


def _card_octets(match: re.Match[bytes]) -> bytes:
    return _STARS.encode() if _is_card(match[0]) else match[0]


def _is_card(found: bytes) -> bool:
    if b"%" in found:  # between groups of digits: a blank or a hyphen
        found = found.replace(b"%20", b"").replace(b"%2D", b"").replace(b"%2d", b"")
    return is_card_number(found.translate(None, b" +-"))


def is_card_number(digits: bytes) -> bool:
    """By the check digit (ISO/IEC 7812-1, annex B)."""
    summed = sum(digits[-1::-2].translate(_ONCE)) + sum(digits[-2::-2].translate(_TWICE))
    return _SHORTEST_CARD <= len(digits) <= _LONGEST_CARD and summed % 10 == 0


class _Rule(NamedTuple):
    """In every text that the expression could match stands one of the ``hints``, and one of the characters in
    ``signs``."""

    signs: str
    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    replace: Replace


def _rule(signs: str, hints: str, pattern: str, replace: Replace | None = None) -> _Rule:
    return _Rule(signs, tuple(hints.split()), re.compile(pattern), replace or (lambda match: match["kept"] + _STARS))


_START = r"(?:\b|(?<=%[0-9A-Fa-f][0-9A-Fa-f]))"  # of a word, which may stand behind an encoded character


def _rules(key_prefix: str) -> dict[str, list[_Rule]]:
    key = re.escape(key_prefix)
    sign = next((each for each in key_prefix if not each.isalnum()), key_prefix[:1])  # the rarer, the better
    return {
        # The ten characters that find a key's row are no secret, and say in a log which key it was.
        "keys": [_rule(sign, key_prefix, rf"(?P<kept>{key}[0-9A-Za-z]{{10}})[0-9A-Za-z]+")],
        "tokens": [
            _rule("J", "eyJ", rf"(?P<kept>{_START}eyJ)[A-Za-z0-9_-]{{4,}}(?:\.[A-Za-z0-9_-]*){{0,4}}"),
            _rule(
                " +%",
                "earer EARER asic ASIC",
                rf"(?P<kept>{_START}(?i:bearer|basic)(?: |\+|%20)+)(?!(?i:realm|error)\b)[A-Za-z0-9._~+/=-]{{8,}}",
            ),
            _rule("_", "rt_ inv_ whsec_", rf"(?P<kept>{_START}(?:p?rt|inv|whsec)_)[A-Za-z0-9_+/=-]{{16,}}"),
            _rule(":", "://", r"(?P<kept>://)[^/\s:@'\"]{0,200}:[^/\s@'\"]{1,200}(?=@)"),
        ],
        "cookies": [
            _rule(
                ":=,",
                "ookie OOKIE",
                r"(?P<kept>\b(?i:set-cookie|cookie)['\"]?[ ]?[:=,][ ]?b?['\"]?)[^\r\n'\"]+",
            ),
        ],
        "emails": [
            _rule(
                "@%",
                "@ %40",
                r"[A-Za-z0-9._%+'-]{1,64}(?:@|%40)(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b",
                lambda match: f"{_STARS}@{_STARS}",
            )
        ],
    }


# The first digit stands first, so that the search for one is quick.
_CARD = re.compile(
    r"[2-6](?:(?<![0-9A-Za-z_.].)|(?<=%[0-9A-Fa-f][0-9A-Fa-f].))(?:(?:[ +-]|%20|%2[Dd])?[0-9]){12,18}(?![0-9A-Za-z_])"
)
_CARD_OCTETS = re.compile(_CARD.pattern.encode())


class Masker:
    """``patterns`` are RE2 expressions whose matches are masked too. Raises ValueError for one that is none."""

    def __init__(self, classes: Sequence[str] = CLASSES, key_prefix: str = "km_", patterns: Sequence[str] = ()) -> None:
        rules = _rules(key_prefix)
        self._rules = [rule for name in classes for rule in rules.get(name, ())]
        self._has_cards = "cards" in classes
        self._patterns = [_compiled(pattern) for pattern in patterns]
        signs = set("".join(rule.signs for rule in self._rules).encode())
        is_told_by_signs = not patterns and signs.isdisjoint(_DIGITS)
        self._harmless = bytes(set(range(256)) - signs - set(_DIGITS)) if is_told_by_signs else None

    def mask(self, text: str) -> str:
        if len(text) > _LONGEST:
            text = text[:_LONGEST] + "…"
        for _, hints, pattern, replace in self._rules:
            for hint in hints:
                if hint in text:
                    text = pattern.sub(replace, text)
                    break
        if self._has_cards:
            text = _CARD.sub(_card, text)
        for own in self._patterns:
            text = own.sub(_STARS, text)
        return text

    def mask_octets(self, data: bytes) -> bytes:
        """What `mask` makes of them. Most paths hold no sign of anything but a card, and too few digits for one."""
        if self._harmless is not None and len(data) <= _LONGEST:
            signs = data.translate(None, self._harmless)
            if not signs or (signs.isdigit() and (len(signs) < _SHORTEST_CARD or not self._has_cards)):
                return data
            if signs.isdigit():
                return _CARD_OCTETS.sub(_card_octets, data)
        return self.mask(data.decode("latin-1")).encode("latin-1", "replace")


def _compiled(pattern: str) -> Any:
    import re2  # linear in the text, whatever an operator writes; loaded only where one has

    try:
        return re2.compile(pattern)
    except re2.error as error:
        raise ValueError(f"{pattern!r} is no RE2 expression: {error}") from None


_installed = Masker()


def install(masker: Masker) -> None:
    """From now on, of this process: what `mask` does, and what every logger writes."""
    global _installed
    _installed = masker
    logging.setLogRecordFactory(_record)


def mask(text: str) -> str:
    return _installed.mask(text)


def mask_octets(data: bytes) -> bytes:
    return _installed.mask_octets(data)


def masked(document: Any) -> Any:
    """A JSON document whose texts are masked; names of members stay."""
    if isinstance(document, str):
        return mask(document)
    if isinstance(document, Mapping):
        return {name: masked(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [masked(value) for value in document]
    return document


def _record(*arguments: Any, **named: Any) -> logging.LogRecord:
    """In the place of `logging.LogRecord`: a filter would have to be put on every handler that anybody ever adds."""
    record = logging.LogRecord(*arguments, **named)
    try:
        written = record.getMessage()
    except Exception:  # what cannot be put together the handler reports
        return record
    message = mask(written)
    if message != written:
        record.msg, record.args = message, None
    if record.exc_info and record.exc_info[0] is not None:
        record.exc_text = mask(_TRACES.formatException(record.exc_info))
    return record


_TRACES = logging.Formatter()
