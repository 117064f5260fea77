"""The secrets of managers in a process with an event loop, and what an admin may refer to."""

import asyncio
from typing import Any

import pytest
from rest_framework.test import APIClient

from core.faults import InternalFault
from core.secret_references import SecretReferences, SecretUnavailable
from core.secret_references.managed import ManagedSecrets
from gateway_project.agent.managed_secrets import SecretCalls
from tests.admin_api import problem_of

REFERENCE = "secret://aws/gateway/orders"


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def test_a_value_is_asked_for_in_the_background_and_stays_when_it_cannot_be_renewed() -> None:
    clock = Clock()
    away = SecretUnavailable(REFERENCE, "the manager is away")
    answers: list[Any] = [away, b"one", away, b"two"]
    asked = 0

    async def ask(reference: str) -> bytes:
        nonlocal asked
        asked += 1
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, bytes)
        return answer

    async def turn() -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    async def run() -> None:
        managed = ManagedSecrets(ask, renew_s=30, retry_s=1, now=clock)
        references = SecretReferences("/nowhere", managed=managed, now=clock)
        with pytest.raises(SecretUnavailable, match="being fetched"):
            references.resolve(REFERENCE)
        await turn()
        with pytest.raises(SecretUnavailable, match="the manager is away"):
            references.resolve(REFERENCE)
        assert references.problems == {REFERENCE: "the manager is away"}
        managed.sweep()
        assert asked == 1  # not due yet
        clock.at = 1.0
        managed.sweep()
        managed.sweep()
        await turn()
        assert (references.resolve(REFERENCE), references.problems, asked) == (b"one", {}, 2)
        for at, expected in ((31.0, b"one"), (61.0, b"two")):
            clock.at = at
            managed.sweep()
            await turn()
            assert references.resolve(REFERENCE) == expected

    asyncio.run(run())


def test_a_process_that_asks_no_manager_says_so() -> None:
    with pytest.raises(SecretUnavailable, match="asks no secrets manager"):
        SecretReferences("/nowhere").resolve(REFERENCE)


def test_the_agent_says_why_it_has_none() -> None:
    with pytest.raises(InternalFault, match="SECRETS_AWS_PREFIX"):
        asyncio.run(SecretCalls().secret({"reference": REFERENCE}))


@pytest.mark.django_db
def test_a_reference_that_the_host_could_not_resolve_is_an_error_at_its_field(api: APIClient, settings: Any) -> None:
    def credentials(reference: str) -> dict[str, Any]:
        return {"upstreamCredentials": [{"header": "X-Token", "value": f"{{{reference}}}"}]}

    service = {"name": "orders", "defaultUrl": "http://10.0.0.1:7000"}
    problem = problem_of(api.post("/admin/routing/services", service | credentials(REFERENCE)), 422, "invalid_field")
    (sentence,) = problem["errors"]["upstreamCredentials"]
    assert "SECRETS_AWS_PREFIX" in sentence
    settings.SECRETS_AWS_PREFIX = "gateway/"
    assert api.post("/admin/routing/services", service | credentials(REFERENCE)).status_code == 201
    other = credentials("secret://aws/payroll/root")
    problem = problem_of(api.patch("/admin/routing/services/orders", other), 422, "invalid_field")
    assert problem["errors"]["upstreamCredentials"] == [
        "secret://aws/payroll/root: references to AWS Secrets Manager begin with secret://aws/gateway/ here."
    ]
    settings.SECRETS_AWS_PREFIX = ""  # what stands there already may stay
    assert api.patch("/admin/routing/services/orders", {"description": "still there"}).status_code == 200
