"""HTTP dates (RFC 9110 section 5.6.7): the three forms that a recipient must read, and the one that is written."""

from __future__ import annotations

import re
from calendar import timegm
from email.utils import formatdate
from functools import lru_cache
from time import gmtime, time

_MONTHS = {name: number for number, name in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}
_TIME = rb"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_FORMS = tuple(
    re.compile(form)
    for form in (
        rb"[A-Za-z]{3}, (?P<day>[0-9]{2}) (?P<month>[A-Za-z]{3}) (?P<year>[0-9]{4}) " + _TIME + rb" GMT",
        rb"[A-Za-z]{6,9}, (?P<day>[0-9]{2})-(?P<month>[A-Za-z]{3})-(?P<year>[0-9]{2}) " + _TIME + rb" GMT",
        rb"[A-Za-z]{3} (?P<month>[A-Za-z]{3}) (?P<day>[0-9 ][0-9]) " + _TIME + rb" (?P<year>[0-9]{4})",
    )
)


@lru_cache(maxsize=1024)
def parse_date(value: bytes) -> float | None:
    """Epoch seconds; None for what is no HTTP date."""
    for form in _FORMS:
        match = form.fullmatch(value)
        if match is not None:
            month = _MONTHS.get(match["month"].title())
            if month is None:
                return None
            day, year = int(match["day"]), _full_year(int(match["year"]))
            hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"])
            if not (1 <= day <= 31 and hour < 24 and minute < 60 and second < 61):
                return None
            return float(timegm((year, month, day, hour, minute, second)))
    return None


def _full_year(year: int) -> int:
    """Two digits that seem to lie more than 50 years ahead mean the past century."""
    if year >= 100:
        return year
    present = gmtime(time()).tm_year
    year += present - present % 100
    return year - 100 if year > present + 50 else year


def format_date(epoch_s: float) -> bytes:
    return formatdate(epoch_s, usegmt=True).encode("ascii")
