"""Changes by the admin API that a request can see: where a service leads, and whether the key works."""

from __future__ import annotations

import time

import orjson

from bench.gateways import Gateway
from bench.machine import CannotMeasure
from bench.peers import ECHOED, PATH

_SERVICE = "/admin/routing/services/s977"
_POLL_S = 0.001
_LOST_S = 10.0


class Changes:
    """Three kinds in turn, by number: the measured service gets another path prefix, the key is suspended, the key is
    activated again."""

    def __init__(self, gateway: Gateway) -> None:
        self._admin = gateway.admin()
        self._client = gateway.client()
        self._key = f"/keys/{gateway.client_key_id}"

    def write(self, number: int, prefer: str = "") -> bool:
        """Make the change; ``prefer`` as in RFC 7240. Whether every live node has applied it when the answer comes.

        Raises CannotMeasure when it is refused.
        """
        method, path, document = self._request(number)
        status, body, fields = self._admin.ask(method, path, document, **({"Prefer": prefer} if prefer else {}))
        if status != 200:
            raise CannotMeasure(f"the admin API answers {status}: {body[:300]!r}")
        return "x-config-pending" not in fields

    def _request(self, number: int) -> tuple[str, str, object]:
        if number % 3 == 0:
            return "PATCH", _SERVICE, {"pathPrefix": f"{ECHOED}/{number}"}
        return "POST", f"{self._key}/{'suspend' if number % 3 == 1 else 'activate'}", None

    def is_seen(self, number: int) -> bool:
        """Whether a request, made now, is served as the change has it."""
        status, body, _ = self._client.ask("GET", PATH)
        if number % 3 == 0:
            return body == f"{ECHOED}/{number}/abc".encode()
        return status == (401 if number % 3 == 1 else 200)

    def wait_until_seen(self, number: int) -> None:
        """Raises CannotMeasure when the change is lost."""
        deadline = time.monotonic() + _LOST_S
        while not self.is_seen(number):
            if time.monotonic() > deadline:
                raise CannotMeasure(f"no request sees change {number} within {_LOST_S:.0f} s")
            time.sleep(_POLL_S)

    def revision(self) -> int:
        """The revision that the worker has in force."""
        return int(orjson.loads(self._client.ask("GET", "/ready")[1])["revision"])

    def close(self) -> None:
        self._admin.close()
        self._client.close()
