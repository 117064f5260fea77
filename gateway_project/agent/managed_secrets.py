"""What workers ask of the agent about secrets managers: ``secret``, the value of one reference.

The agent alone speaks with managers, in threads: workers hold neither the vendors' libraries nor credentials for them,
and a host asks once however many workers it has. Values go over the agent's own socket and into no file.
"""

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from core.faults import InternalFault
from core.managed_secrets import managers
from core.secret_references import SecretUnavailable
from core.secret_references.managed import ManagedSecrets

Params = dict[str, Any]
_AT_ONCE = 4
_LOOK_S = 1.0
_RENEW_S = 30.0


class SecretCalls:
    """A handler for the agent's server, and ``managed``, by which the agent's own parts resolve without waiting."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, "secrets")
        self.managed = ManagedSecrets(self.value, renew_s=_RENEW_S)
        self.handlers: dict[str, Callable[[Params], Awaitable[Params]]] = {"secret": self.secret}

    async def secret(self, params: Params) -> Params:
        """``{"reference"}`` → ``{"value"}`` in Base64. Raises GatewayFault: ``dependency_unavailable``, which tells the
        worker why."""
        try:
            value = await self.value(str(params["reference"]))
        except SecretUnavailable as unavailable:
            raise InternalFault("dependency_unavailable", unavailable.reason) from None
        return {"value": b64encode(value).decode("ascii")}

    async def value(self, reference: str) -> bytes:
        """Raises `SecretUnavailable`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, managers().resolve, reference)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await asyncio.sleep(_LOOK_S)
                self.managed.sweep()
        finally:
            self.managed.close()
            self._threads.shutdown(wait=False, cancel_futures=True)
