"""Asks the issuers of clients' tokens on behalf of the workers: for their keys, in the background and when a token
names one that nobody knows, and for their opinion of opaque tokens.

Keys are kept when an issuer is away, and over a restart of the agent.
"""

import asyncio
import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from access.tokens.fetching import IssuerAway, IssuerClient
from access.tokens.records import IssuerRecord
from core.faults import GatewayFault, InternalFault
from core.secret_references import SecretReferences
from core.wire import Message
from gateway_project.agent.store import ConfigStore

logger = logging.getLogger("portcullis.agent")

LOOK_S = 0.25
REFRESH_S = 600.0
_REFRESH_BOUNDS_S = (60.0, 3600.0)  # whatever Cache-Control says
RETRY_S = (1.0, 60.0)  # after a failure, doubled each time
_PAUSE_S = 1.0  # between two fetches, whoever asks
_JITTER = 0.1
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age=([0-9]{1,9})(?=$|[,\s])", re.IGNORECASE)


class _Issuer:
    """An issuer whose keys are at a URL. Times are monotonic."""

    def __init__(self, issuer_id: str, name: str, url: str) -> None:
        self.id, self.name, self.url = issuer_id, name, url
        self.document: dict[str, Any] | None = None
        self.number = 0  # of the change that brought the document
        self.fetched_at = self.failed_at = float("-inf")
        self.next_at = 0.0
        self.retry_s = RETRY_S[0]
        self.error = ""
        self.fetching: asyncio.Task[None] | None = None

    @property
    def told(self) -> dict[str, Any]:
        """The JWK Set, and where it is from: the keys of one URL say nothing of what another's would verify."""
        return {**(self.document or {}), "url": self.url}


class Issuers:
    """News for workers (`agent.server`): the keys. ``handlers`` are what workers may call. ``path``: where keys are
    kept for the next start. ``on_change`` is called when there is news."""

    def __init__(
        self,
        store: ConfigStore,
        permits: Callable[[str], bool],
        secrets: SecretReferences,
        path: Path,
        on_change: Callable[[], None],
    ) -> None:
        self.handlers = {"issuer_keys": self.issuer_keys, "introspect": self.introspect}
        self._store = store
        self._permits = permits
        self._secrets = secrets
        self._path = path
        self._on_change = on_change
        self._client: IssuerClient | None = None
        self._serial = -1
        self._issuers: dict[str, _Issuer] = {}
        self._records: dict[str, IssuerRecord] = {}
        self._number = 1
        self._kept: dict[str, Any] = {}
        self._opinions: dict[tuple[str, bytes], asyncio.Task[dict[str, Any] | None]] = {}
        self._could_write = True

    async def run(self) -> None:
        """Until cancelled."""
        self._kept = _read(self._path)
        try:
            while True:
                self._look()
                now = time.monotonic()
                for issuer in self._issuers.values():
                    if issuer.next_at <= now:
                        self._fetch_soon(issuer)
                await asyncio.sleep(LOOK_S)
        finally:
            tasks = [each.fetching for each in self._issuers.values() if each.fetching is not None]
            await _end([*tasks, *self._opinions.values()])
            if self._client is not None:
                await self._client.aclose()

    # --- which there are ---
    def _look(self) -> None:
        if self._store.serial == self._serial:
            return
        self._serial = self._store.serial
        records = {}
        for issuer_id, encoded in self._store.records["issuer"].items():
            try:
                records[issuer_id] = IssuerRecord.from_wire(orjson.loads(encoded))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # workers skip it too, and say so
        if records == self._records:
            return
        self._records = records
        watched = {}
        for record in records.values():
            if record.rules.jwks_url:
                watched[record.id] = self._watched(record)
        gone = [each for issuer_id, each in self._issuers.items() if watched.get(issuer_id) is not each]
        if gone or watched.keys() != self._issuers.keys():
            self._number += 1
        for issuer in gone:
            if issuer.fetching is not None:
                issuer.fetching.cancel()
        self._issuers = watched

    def _watched(self, record: IssuerRecord) -> _Issuer:
        known = self._issuers.get(record.id)
        if known is not None and known.url == record.rules.jwks_url:
            known.name = record.name
            return known
        issuer = _Issuer(record.id, record.name, record.rules.jwks_url)
        kept = self._kept.get(record.id)
        if isinstance(kept, dict) and kept.get("url") == issuer.url and isinstance(kept.get("keys"), dict):
            self._take(issuer, kept["keys"])
        return issuer

    # --- keys ---
    def _fetch_soon(self, issuer: _Issuer) -> asyncio.Task[None]:
        if issuer.fetching is None:
            issuer.fetching = asyncio.create_task(self._fetch(issuer), name=f"keys of {issuer.name}")
            issuer.next_at = float("inf")
        return issuer.fetching

    async def _fetch(self, issuer: _Issuer) -> None:
        try:
            keys, cache_control = await self._asked().keys(issuer.url)
            if not keys:
                raise IssuerAway("there are no public keys in what it publishes")
        except IssuerAway as away:
            self._failed(issuer, str(away))
        except Exception:
            logger.exception("what the issuer %s publishes cannot be read", issuer.name)
            self._failed(issuer, "it cannot be read")
        else:
            now = time.monotonic()
            issuer.error, issuer.retry_s = "", RETRY_S[0]
            issuer.fetched_at, issuer.failed_at = now, float("-inf")
            issuer.next_at = now + _refresh_s(cache_control) * random.uniform(1 - _JITTER, 1)
            if self._issuers.get(issuer.id) is issuer and self._take(issuer, {"keys": keys}):
                logger.info("the issuer %s has %d keys", issuer.name, len(keys))
                await asyncio.to_thread(self._write)
        finally:
            issuer.fetching = None

    def _failed(self, issuer: _Issuer, why: str) -> None:
        now = time.monotonic()
        if issuer.error != why:
            logger.warning("the keys of the issuer %s cannot be had: %s", issuer.name, why)
        issuer.error, issuer.failed_at = why, now
        issuer.next_at = now + issuer.retry_s * random.uniform(1 - _JITTER, 1 + _JITTER)
        issuer.retry_s = min(issuer.retry_s * 2, RETRY_S[1])

    def _take(self, issuer: _Issuer, document: dict[str, Any]) -> bool:
        """Returns whether it is another one than before."""
        if issuer.document == document:
            return False
        issuer.document = document
        self._number += 1
        issuer.number = self._number
        self._on_change()
        return True

    def since(self, told: Any) -> tuple[Any, Message | None]:
        """``told``: the number of the latest change that the worker knows."""
        if told == self._number:
            return told, None
        issuers = {each.id: each.told for each in self._issuers.values() if each.document is not None}
        return self._number, {"type": "jwks", "whole": True, "issuers": issuers}

    async def issuer_keys(self, params: dict[str, Any]) -> dict[str, Any]:
        """``{"issuer"}`` → ``{"keys"}``, the JWK Set as it is now, with its ``url``. Raises InternalFault
        ``dependency_unavailable``."""
        self._look()
        issuer = self._issuers.get(str(params["issuer"]))
        if issuer is None:
            raise _away("The gateway's agent does not know the issuer yet.")
        asked_at = time.monotonic()
        if asked_at - issuer.failed_at >= RETRY_S[0]:
            # Only what is fetched after the question answers it: the key may be as new as that.
            await asyncio.sleep(issuer.fetched_at + _PAUSE_S - asked_at)
            if issuer.fetched_at < asked_at:
                await asyncio.wait([self._fetch_soon(issuer)])
        if issuer.error or issuer.document is None:
            raise _away(f"The keys of the issuer {issuer.name} cannot be had at the moment.")
        return {"keys": issuer.told}

    # --- opinions ---
    async def introspect(self, params: dict[str, Any]) -> dict[str, Any]:
        """``{"issuer", "token"}`` → ``{"claims"}``, None for a token that is not active. Raises `InternalFault`
        ``dependency_unavailable``."""
        self._look()
        record = self._records.get(str(params["issuer"]))
        if record is None or record.rules.introspection is None:
            raise _away("The gateway's agent does not know the issuer yet.")
        token = str(params["token"])
        asked = record.id, hashlib.sha256(token.encode()).digest()
        task = self._opinions.get(asked)
        if task is None:
            task = self._opinions[asked] = asyncio.create_task(self._opinion(record, token))
            task.add_done_callback(lambda _: self._opinions.pop(asked, None))
        return {"claims": await asyncio.shield(task)}

    async def _opinion(self, record: IssuerRecord, token: str) -> dict[str, Any] | None:
        policy = record.rules.introspection
        assert policy is not None
        try:
            return await self._asked().opinion(policy, self._secrets.resolve(policy.client_secret), token)
        except IssuerAway as away:
            logger.warning("the issuer %s cannot be asked about a token: %s", record.name, away)
            raise _away(f"The issuer {record.name} cannot be asked about the token at the moment.") from None
        except GatewayFault as fault:
            logger.warning("the issuer %s cannot be asked about a token: %s", record.name, fault)
            raise _away(f"The issuer {record.name} cannot be asked about the token at the moment.") from None

    def _asked(self) -> IssuerClient:
        if self._client is None:
            self._client = IssuerClient(self._permits)
        return self._client

    # --- the next start ---
    def _write(self) -> None:
        kept = {
            each.id: {"url": each.url, "keys": each.document}
            for each in list(self._issuers.values())
            if each.document is not None
        }
        fresh = self._path.with_suffix(".new")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(orjson.dumps(kept))
            fresh.replace(self._path)
            self._could_write = True
        except OSError as error:
            if self._could_write:
                logger.error("the keys of issuers cannot be kept in %s: %s", self._path, error.strerror)
            self._could_write = False

    @property
    def without_fresh_keys(self) -> int:
        """How many issuers' keys could not be had the last time."""
        return sum(bool(each.error) for each in self._issuers.values())


def _refresh_s(cache_control: str) -> float:
    found = _MAX_AGE.search(cache_control)
    lowest, highest = _REFRESH_BOUNDS_S
    return REFRESH_S if found is None else min(max(float(found[1]), lowest), highest)


def _away(detail: str) -> InternalFault:
    return InternalFault("dependency_unavailable", detail, retry_after_s=1)


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
