"""What allauth takes for a session of requests: connections to identity providers pass the egress policy (rule 25)."""

from types import TracebackType
from typing import Any, Self

import httpx
import requests
from django.conf import settings

from access.addresses import EgressPolicy
from access.outgoing import client

_TIMEOUT_S = 10.0


class EgressSession:
    def __init__(self) -> None:
        self._client = client(EgressPolicy(settings.EGRESS_ALLOW).permits, _TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.close()

    def get(self, url: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """Raises requests.HTTPError for every answer but a good one."""
        response = self.request("GET", url, headers=headers)
        if not response.is_success:
            raise requests.HTTPError(f"{httpx.URL(url).host} answers {response.status_code}")
        return response

    def request(self, method: str, url: str, **arguments: Any) -> httpx.Response:
        try:
            return self._client.request(method, url, **arguments)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise requests.ConnectionError(str(error)) from error
