"""The OpenAPI document against the API that it describes: whatever is sent, by whomever, the answer is one that stands
in the document, what does not fit the document is refused, and nothing is a 5xx.

`make test` tries a few requests of each operation. `make fuzz` tries FUZZ_EXAMPLES of each kind: that fit the document,
that do not, and random ones; the same each time, and others for each FUZZ_SEED, a number. FUZZ_ONLY is a regular
expression of operations to stay with.
"""

import os
import random
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
import pytest
import schemathesis
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, transaction
from django.test import override_settings
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode, checks
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.drivers import CoverageGenerator
from schemathesis.generation.feedback import NO_FEEDBACK
from schemathesis.generation.overrides import Override
from schemathesis.specs.openapi import checks as openapi_checks

from gateway_project.api import _openapi_document
from tests.administrators import key_of, make_account
from tests.permission_world import Objects, make_objects

pytestmark = pytest.mark.django_db
OF_EACH_MODE = int(os.environ.get("FUZZ_EXAMPLES", "2"))
AT_RANDOM = OF_EACH_MODE if "FUZZ_EXAMPLES" in os.environ else 0  # drawing them takes longer than sending them
SEED = int(os.environ.get("FUZZ_SEED", "0"))
ONLY = re.compile(os.environ.get("FUZZ_ONLY", ""))
PARTS = 8  # for processes to share
KEPT = {"/keys", "/api/v1/management/api-keys", "/admin/access/invitations"}  # revoked, withdrawn: still to be read


def what_fits_is_accepted(context: Any, answer: Any, case: Any) -> bool | None:
    """A body's document cannot say which names there are, or what its fields mean to one another: it may be 422. A page
    begins only at a cursor that a page before it gave."""
    if case.query and "cursor" in case.query:
        return None
    if answer.status_code == 422 and case.method in ("POST", "PUT", "PATCH"):
        return None
    return openapi_checks.positive_data_acceptance(context, answer, case)


CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
    openapi_checks.missing_required_header,
    openapi_checks.unsupported_method,
    openapi_checks.allow_header_conformance,
    what_fits_is_accepted,
]


@dataclass(frozen=True, slots=True)
class World:
    """Who calls, by name (their key; nobody's is empty), and one object of each kind."""

    keys: dict[str, str]
    objects: Objects


@pytest.fixture(scope="module")
def world(django_db_setup: None, django_db_blocker: Any, tmp_path_factory: Any) -> Iterator[World]:
    changed = override_settings(
        STATIC_ROOT=str(tmp_path_factory.mktemp("static")),
        AUTH_FAILURES_PER_MINUTE=10**6,
        VALIDATIONS_PER_MINUTE=10**6,
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],  # argon2's time is tested elsewhere
    )
    for signal in (request_started, request_finished):  # they would end the connection and the transaction on it
        signal.disconnect(close_old_connections)
    with django_db_blocker.unblock(), changed, transaction.atomic():
        objects = make_objects("default")
        callers = {role: key_of(make_account(role.lower(), role)) for role in ("SUPER_ADMIN", "KEY_VIEWER")}
        yield World({**callers, "nobody": ""}, objects)
        transaction.set_rollback(True)
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.fixture(scope="module")
def operations() -> list[Any]:
    return [found.ok() for found in _schema(undone=True).get_all_operations()]


def _schema(*, undone: bool) -> Any:
    schema: Any = schemathesis.openapi.from_dict(_described())
    schema.config.generation.with_security_parameters = False
    schema.config.generation.allow_x00 = False  # no text may hold it
    for check in (schema.config.checks.positive_data_acceptance, schema.config.checks.negative_data_rejection):
        check.expected_statuses.append("412")  # `If-Match` names another revision: told before the body is looked at
    schema.app = _on_this_connection(get_wsgi_application(), undone=undone)
    return schema


def _described() -> dict[str, Any]:
    """The document without its catch-all, so that a status that it does not name is a failure."""
    document = deepcopy(orjson.loads(_openapi_document()))
    for found in document["paths"].values():
        for operation in found.values():
            operation["responses"].pop("default", None)
    return document  # type: ignore[no-any-return]


def _on_this_connection(application: Callable[..., Any], *, undone: bool) -> Callable[..., list[bytes]]:
    """The application, in the transaction that the tests are in; ``undone``: what a request did is undone after it."""

    def run(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["HTTP_PREFER"] = "wait=0"  # there is no gateway to wait for
        with transaction.atomic():
            answer = application(environ, start_response)
            content = list(answer)
            transaction.set_rollback(undone)
        return content

    return run


@pytest.mark.parametrize("part", range(PARTS))
def test_an_answer_is_one_that_the_document_describes(part: int, world: World, operations: list[Any]) -> None:
    wrong: dict[str, str] = {}
    for operation in operations[part::PARTS]:
        if ONLY.search(operation.label):
            for case in cases_of(operation, world.objects):
                for name, key in world.keys.items():
                    # It repeats what is answered without a key, and with a wrong one: once is enough.
                    asked = [*CHECKS, openapi_checks.ignored_auth] if name == "SUPER_ADMIN" else CHECKS
                    wrong |= {f"{name}: {title}": why for title, why in failures(case, key, asked)}
    if wrong:
        pytest.fail("\n\n".join(f"{title}\n{why}" for title, why in wrong.items()), pytrace=False)


def failures(case: Any, key: str, asked: list[Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with the answer to a request: the operation and the check, and how it came about."""
    try:
        case.call_and_validate(headers={"X-API-Key": key} if key else {}, checks=asked)
    except FailureGroup as group:
        for failure in group.exceptions:
            assert isinstance(failure, Failure)
            yield f"{case.operation.label} {failure.title}", str(group)


def cases_of(operation: Any, objects: Objects) -> Iterator[Any]:
    """Requests that fit the document and that do not, most of them to objects that there are."""
    existing = _names_in(operation.path, objects)
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        for case in _worth_trying(operation, mode):
            if case.path_parameters and not case.meta.is_negative_at(ParameterLocation.PATH):
                case.path_parameters = existing
            yield case
    yield from _random(operation)


def _names_in(path: str, objects: Objects) -> dict[str, str]:
    """The parameters of a path of the document, naming objects that there are."""
    names = re.findall(r"{(\w+)}", path)
    if not names:
        return {}
    found = objects.path(re.sub(r"{(\w+)}", r"<\1>", path).removeprefix("/"), is_page=False)
    matched = re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", path), found)
    assert matched, path
    return matched.groupdict()


def _coverage(operation: Any, mode: GenerationMode) -> Iterator[Any]:
    """Each value of each field at the edges of what it may be, or beyond, one at a time."""
    config = operation.schema.config.generation_for(operation=operation, phase="coverage")
    found = CoverageGenerator(
        operation=operation,
        generation_modes=[mode],
        generation_config=config,
        auth_storage=None,
        override=Override(),
        feedback=NO_FEEDBACK,
    )
    return iter(found)


def _worth_trying(operation: Any, mode: GenerationMode) -> list[Any]:
    cases = list(_coverage(operation, mode))
    return random.Random(f"{operation.label}{SEED or ''}").sample(cases, min(OF_EACH_MODE, len(cases)))


def _random(operation: Any) -> list[Any]:
    cases: list[Any] = []
    if AT_RANDOM:

        @seed(f"{operation.label}{SEED}")
        @settings(
            max_examples=AT_RANDOM,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy())
        def draw(case: Any) -> None:
            cases.append(case)

        draw()
    return cases


def test_what_was_made_is_there_and_what_was_deleted_is_not(world: World) -> None:
    """What schemathesis asks by `ensure_resource_availability` and `use_after_free`; its own scenarios seldom get as
    far as to make something, since they guess the names of what is there."""
    schema = _schema(undone=False)
    found = {(one.method.upper(), one.path): one for one in (each.ok() for each in schema.get_all_operations())}
    lived = set()
    for (method, path), create in found.items():
        item = next((other for _, other in found if re.fullmatch(re.escape(path) + r"/{\w+}", other)), "")
        if method == "POST" and {("GET", item), ("DELETE", item)} <= set(found):
            with transaction.atomic():
                if _lives_and_dies(create, found["GET", item], found["DELETE", item], world):
                    lived.add(path)
                transaction.set_rollback(True)
    assert {"/keys", "/admin/routing/services", "/admin/access/users", "/admin/access/applications"} <= lived


def _lives_and_dies(create: Any, read: Any, delete: Any, world: World) -> bool:
    """False: the document alone does not say how to make one."""
    headers = {"X-API-Key": world.keys["SUPER_ADMIN"]}
    for case in islice(_coverage(create, GenerationMode.POSITIVE), 20):
        case.path_parameters = _names_in(create.path, world.objects)
        made = case.call(headers=headers)
        if made.status_code == 201:
            break
    else:
        return False
    name = re.findall(r"{(\w+)}", read.path)[-1]
    where = {**case.path_parameters, name: str(made.json()[name])}
    reading = read.Case(path_parameters=where)
    assert reading.call(headers=headers).status_code == 200, read.label
    assert delete.Case(path_parameters=where).call(headers=headers).status_code in (200, 204), delete.label
    assert reading.call(headers=headers).status_code == (200 if create.path in KEPT else 404), read.label
    return True
