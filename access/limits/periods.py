"""Quotas go by the calendar: UTC days and months."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, NamedTuple

_DAY_S = 86_400


class Period(NamedTuple):
    """``name`` is 2026-11-20 or 2026-11; ``start`` and ``end`` are epoch seconds, ``end`` the first of the next one."""

    name: str
    start: int
    end: int


def period_of(kind: Literal["day", "month"], epoch: float) -> Period:
    """The day or month that ``epoch`` (seconds) lies in."""
    if kind == "day":
        start = int(epoch // _DAY_S) * _DAY_S
        return Period(datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%d"), start, start + _DAY_S)
    at = datetime.fromtimestamp(epoch, UTC)
    first = datetime(at.year, at.month, 1, tzinfo=UTC)
    following = datetime(at.year + at.month // 12, at.month % 12 + 1, 1, tzinfo=UTC)
    return Period(first.strftime("%Y-%m"), int(first.timestamp()), int(following.timestamp()))
