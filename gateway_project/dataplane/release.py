"""Lets go of a large structure piece by piece: freed at once, 100,000 keys would stop the event loop for 50 ms."""

from __future__ import annotations

import asyncio
import gc
from sys import getrefcount
from typing import Any

_SLICE = 500  # objects in one go, about a third of a millisecond
_OWN_REFERENCES = 2  # a local variable and the argument of getrefcount
_LOOK_S = 0.05
_LOOKS = 1_200


async def release_slowly(holder: list[Any]) -> None:
    """Free the objects in ``holder``, which must be the caller's last reference to them, and all that only they hold.

    Waits up to a minute for requests that still use one of them; what is still in use then, its last user frees.
    """
    for _ in range(_LOOKS):
        if not _in_use(holder):
            break
        await asyncio.sleep(_LOOK_S)
    while holder:
        for _ in range(min(_SLICE, len(holder))):
            _take_apart(holder)
        await asyncio.sleep(0)


def _in_use(holder: list[Any]) -> bool:
    # In the list, and as the argument.
    return any(getrefcount(holder[index]) > _OWN_REFERENCES for index in range(len(holder)))


def _take_apart(holder: list[Any]) -> None:
    """Free the last object of the list alone, after taking over what it refers to."""
    last = holder.pop()
    if getrefcount(last) == _OWN_REFERENCES:  # else it is shared: a class, an interned string, a part still in use
        holder.extend(gc.get_referents(last))
