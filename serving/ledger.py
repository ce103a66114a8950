"""The ledger of one server: campaigns and retraining requests in one SQLite file.

A request is written here before anything is started for it, and the table itself refuses a campaign's second one.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

from redoubt.threat import ThreatModel
from serving.records import Campaign, LedgerUnavailable, RetrainRequest, asked_for, forbidden, opened

_SCHEMA = """
CREATE TABLE IF NOT EXISTS campaigns (
  id TEXT PRIMARY KEY, model_name TEXT NOT NULL, model_version TEXT NOT NULL, state TEXT NOT NULL,
  opened_at REAL NOT NULL, closed_at REAL, inputs_at_alarm INTEGER NOT NULL, flagged INTEGER NOT NULL,
  strength TEXT, matched REAL, outcome TEXT, reason TEXT);
CREATE TABLE IF NOT EXISTS requests (
  id TEXT PRIMARY KEY, campaign TEXT NOT NULL REFERENCES campaigns (id), round INTEGER NOT NULL,
  model_name TEXT NOT NULL, parent_version TEXT NOT NULL, norm TEXT NOT NULL, epsilon REAL NOT NULL,
  state TEXT NOT NULL, attempts INTEGER NOT NULL, reason TEXT, version TEXT,
  created_at REAL NOT NULL, finished_at REAL, next_attempt_at REAL,
  UNIQUE (campaign, round));
"""


class SqliteLedger:
    """The ledger file of one home folder. Safe to use from every thread; other processes may share the file."""

    def __init__(self, file: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._sql = sqlite3.connect(file, timeout=10, isolation_level=None, check_same_thread=False)
        self._sql.row_factory = sqlite3.Row
        self._sql.execute("PRAGMA journal_mode = WAL")
        self._sql.execute("PRAGMA foreign_keys = ON")
        self._sql.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._sql.close()

    # -- campaigns ----------------------------------------------------------------------------------------------

    def open_campaign(self, model_name: str, version: str, *, inputs: int, flagged: int) -> Campaign:
        """Write down a new campaign."""
        campaign = opened(model_name, version, inputs=inputs, flagged=flagged)
        with self._transaction() as sql:
            self._insert(sql, "campaigns", campaign)
        return campaign

    def running_campaign(self, model_name: str) -> Campaign | None:
        """The newest campaign that is not closed; None if all are."""
        newest = "model_name = ? AND state = 'open' ORDER BY opened_at DESC LIMIT 1"
        found = self._select("campaigns", newest, model_name)
        return _campaign(found[0]) if found else None

    def update_campaign(self, campaign: Campaign, **changes) -> Campaign:
        """Write changed fields of a campaign; returns it as it now stands."""
        self._update("campaigns", campaign.id, changes)
        return _campaign(self._select("campaigns", "id = ?", campaign.id)[0])

    def campaigns(self, limit: int = 50) -> list[Campaign]:
        """Newest first."""
        return [_campaign(row) for row in self._select("campaigns", "1 ORDER BY opened_at DESC LIMIT ?", limit)]

    # -- requests -----------------------------------------------------------------------------------------------

    def ask(
        self, campaign: Campaign, threat: ThreatModel, *, cool_down: float, daily_budget: int,
        arrival: float = math.inf,
    ) -> tuple[RetrainRequest | None, str]:
        """Write down a retraining request, unless a bound forbids it now.

        A campaign gets one request, and another only once that came to nothing: the gate refused it, which takes a
        larger epsilon to ask again, or it failed for good, or its version did not serve within `arrival` seconds. No
        two requests of a model are unfinished at a time; `cool_down` seconds lie between them, at most `daily_budget`
        fall in 24 hours.

        Returns:
            The request and nothing, or None and what stands against it.
        """
        now = time.time()
        with self._transaction() as sql:
            earlier = [
                RetrainRequest(**row) for row in sql.execute(
                    "SELECT * FROM requests WHERE model_name = ? ORDER BY created_at", (campaign.model_name,)
                )
            ]
            reason = forbidden(earlier, campaign, threat, cool_down, daily_budget, arrival, now)
            if reason:
                return None, reason
            request = asked_for(campaign, threat, earlier, now)
            self._insert(sql, "requests", request)
        return request, ""

    def due(self, model_name: str) -> RetrainRequest | None:
        """The oldest unfinished request whose time has come; one that was running when a server ended is among them."""
        found = self._select(
            "requests", "model_name = ? AND state IN ('pending', 'running') AND next_attempt_at <= ? "
            "ORDER BY created_at LIMIT 1", model_name, time.time(),
        )
        return RetrainRequest(**found[0]) if found else None

    def update_request(self, request: RetrainRequest, **changes) -> RetrainRequest:
        """Write changed fields of a request; returns it as it now stands."""
        self._update("requests", request.id, changes)
        return RetrainRequest(**self._select("requests", "id = ?", request.id)[0])

    def last_request(self, campaign: Campaign) -> RetrainRequest | None:
        """The campaign's newest request, if it has one."""
        found = self._select("requests", "campaign = ? ORDER BY round DESC LIMIT 1", campaign.id)
        return RetrainRequest(**found[0]) if found else None

    def promoted_before(self, request: RetrainRequest) -> int:
        """How many of the campaign's requests before this one ended in a promotion."""
        return len(self._select(
            "requests", "campaign = ? AND round < ? AND state = 'promoted'", request.campaign, request.round
        ))

    def requests(self, limit: int = 50) -> list[RetrainRequest]:
        """Newest first."""
        rows = self._select("requests", "1 ORDER BY created_at DESC LIMIT ?", limit)
        return [RetrainRequest(**row) for row in rows]

    # -- SQL ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _explained():
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield self._sql
            except BaseException:
                self._sql.execute("ROLLBACK")
                raise
            self._sql.execute("COMMIT")

    def _select(self, table: str, where: str, *values) -> list[sqlite3.Row]:
        with self._lock, _explained():
            return self._sql.execute(f"SELECT * FROM {table} WHERE {where}", values).fetchall()

    def _insert(self, sql: sqlite3.Connection, table: str, row) -> None:
        values = {name: _plain(value) for name, value in asdict(row).items()}
        places = ", ".join(f":{name}" for name in values)
        sql.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})", values)

    def _update(self, table: str, row_id: str, changes: dict) -> None:
        if not changes:
            return
        pairs = ", ".join(f"{name} = :{name}" for name in changes)
        values = {name: _plain(value) for name, value in changes.items()} | {"id": row_id}
        with self._transaction() as sql:
            sql.execute(f"UPDATE {table} SET {pairs} WHERE id = :id", values)


@contextmanager
def _explained() -> Iterator[None]:
    """A disk that fails is a ledger that cannot be had, whatever stores it."""
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerUnavailable(str(error)) from error


def _campaign(row: sqlite3.Row) -> Campaign:
    values = {field.name: row[field.name] for field in fields(Campaign)}
    return Campaign(**values | {"strength": json.loads(values["strength"]) if values["strength"] else None})


def _plain(value):
    return json.dumps(value) if isinstance(value, dict) else value
