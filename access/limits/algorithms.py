"""Rate limiting algorithms, without clock or memory: state and ``now`` in, decision and state out."""


def gcra(tat: int, now: int, interval: int, span: int) -> tuple[bool, int, int, int]:
    """A token bucket in one number: the generic cell rate algorithm (ITU-T I.371, annex A).

    ``tat`` is the time at which the bucket is full again (any past time: it is), ``interval`` what one request costs,
    ``span`` what the full bucket is worth (``interval`` times its size), all in the unit of ``now``. Returns whether
    the request is admitted, the new ``tat``, how many more would be admitted now, and a time: until the bucket is full
    when admitted, until the next request is admitted when refused. A refusal costs nothing.
    """
    if tat < now:
        tat = now
    elif tat > now + span:  # the clock jumped back, or the policy shrank: the bucket is empty, not in debt
        tat = now + span
    used = tat + interval - now
    if used > span:
        return False, tat, 0, used - span
    return True, tat + interval, (span - used) // interval, used
