"""What an operator may do while the server runs: pause retraining, acknowledge, roll back, ask for a promotion.

What was decided lies in HOME/operations.json and outlives a restart; where replicas share a ledger, the pause lies
there and holds for all. Who did what is the audit log's business.
"""

from __future__ import annotations

import json
import logging
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Protocol

from redoubt.errors import InvalidInput, RedoubtError
from serving.champion import Champions
from serving.problems import Busy, NotFound, NotReady
from serving.records import LedgerUnavailable
from serving.settings import Settings

log = logging.getLogger("redoubt.serving")
_KEPT = 100   # acknowledgements
_OUTCOMES = {0: "promoted", 3: "refused"}   # exit codes of the promotion command


class SharedPause(Protocol):
    """A pause that several servers share."""

    def paused(self) -> dict | None: ...

    def pause(self, state: dict | None) -> None: ...


class Operations:
    """The operator's switches. Safe to use from every thread.

    Args:
        champion_changed: called when the champion may have changed.
        shared: where the pause of all replicas is kept; None for a server that is alone.
    """

    def __init__(
        self, settings: Settings, registry: Champions, champion_changed: Callable[[], None],
        shared: SharedPause | None = None,
    ):
        self._shared = shared
        self._settings, self._registry, self._changed = settings, registry, champion_changed
        self._file, self._lock = settings.home / "operations.json", threading.Lock()
        self._state = {"paused": None, "acknowledged": {}} | self._read()
        self._promotion: dict | None = None
        self._process: subprocess.Popen | None = None

    # -- switches -----------------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether no retraining run may start. One that is under way goes on."""
        return self._paused() is not None

    def pause(self, by: str, why: str = "") -> None:
        """No retraining run starts from now on, on no replica; what is asked for waits in the ledger.

        Raises:
            NotReady: when the shared ledger cannot be written.
        """
        self._pause({"by": by, "at": time.time(), "why": why})

    def resume(self) -> None:
        """Retraining runs may start again. Raises as `pause` does."""
        self._pause(None)

    def _paused(self) -> dict | None:
        return self._shared.paused() if self._shared is not None else self._state["paused"]

    def _pause(self, state: dict | None) -> None:
        if self._shared is None:
            return self._write(paused=state)
        try:
            self._shared.pause(state)
        except LedgerUnavailable as error:
            raise NotReady(f"this cannot be told to the other replicas, and so was not done: {error}") from None

    def acknowledge(self, campaign: str, by: str, known: set[str]) -> None:
        """A person has seen this campaign.

        Args:
            known: ids of the campaigns that there are.

        Raises:
            NotFound: when it is not among them.
        """
        if campaign not in known:
            raise NotFound(f"there is no campaign {campaign!r}")
        seen = self._state["acknowledged"] | {campaign: {"by": by, "at": time.time()}}
        self._write(acknowledged=dict(list(seen.items())[-_KEPT:]))

    # -- champions ----------------------------------------------------------------------------------------------

    def rollback(self, by: str, why: str = "") -> str:
        """Put the champion before this one back into service.

        Returns:
            The version that is champion now.

        Raises:
            InvalidInput: when there is none to go back to.
            NotReady: when the registry cannot be reached, or somebody else changed the champion meanwhile.
        """
        try:
            version = self._registry.rollback(why=f"{why or 'rolled back'} (by {by}, on the live page)")
        except InvalidInput:
            raise
        except RedoubtError as error:
            raise NotReady(str(error)) from None
        self._changed()
        return str(version.number)

    def promote(self, version: str, by: str) -> None:
        """Have the gate judge a version, and make it champion if it passes. Returns at once.

        Raises:
            InvalidInput: for no version number, or when this server cannot start the gate.
            Busy: while it judges another one.
        """
        if not (version.isascii() and version.isdecimal() and len(version) < 10):
            raise InvalidInput(f"a version is a whole number such as 3, not {version!r}")
        command = self._settings.promote_command
        if not command:
            raise InvalidInput(f"this server cannot start the gate: run "
                               f"`redoubt promote {self._settings.model_name} {version}` elsewhere")
        with self._lock:
            if self._promotion is not None and self._promotion["state"] == "running":
                raise Busy(f"the gate is judging version {self._promotion['version']}: try again later", 10)
            self._promotion = {"version": version, "state": "running", "reason": None, "by": by, "at": time.time()}
        threading.Thread(target=self._judge, args=(version,), name="promotion", daemon=True).start()

    def _judge(self, version: str) -> None:
        settings = self._settings
        command = [*settings.promote_command, version, "--model", settings.model_name, "--tracking-uri",
                   settings.tracking_uri, "--home", str(settings.home)]
        try:
            with (settings.home / "promotion.log").open("wb") as out:
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                                 start_new_session=True)
                code = self._process.wait(settings.retrain_timeout_seconds)
            lines = (settings.home / "promotion.log").read_text(errors="replace").split("\n")
            reason = next((line.strip() for line in reversed(lines) if line.strip()), "")[:500]
        except (OSError, subprocess.TimeoutExpired) as error:
            self.stop()
            code, reason = 1, str(error)
        state = _OUTCOMES.get(code, "failed")
        with self._lock:
            self._promotion = self._promotion | {"state": state, "reason": reason}
        log.info("promotion of version %s: %s (%s)", version, state, reason)
        self._changed()

    def stop(self) -> None:
        """End a gate that is still judging."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    # -- how it stands ------------------------------------------------------------------------------------------

    def status(self) -> dict:
        """Whether retraining is paused and by whom, which campaigns were acknowledged, and the last promotion."""
        paused = self._paused()   # before the lock: it may ask the API
        with self._lock:
            return {**self._state, "paused": paused, "promotion": self._promotion,
                    "can_promote": bool(self._settings.promote_command)}

    def _read(self) -> dict:
        try:
            found = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.error("%s cannot be read and is ignored: %s", self._file, error)
            return {}
        return {name: found[name] for name in ("paused", "acknowledged") if name in found}

    def _write(self, **changes) -> None:
        """Change the state and write it down; what cannot be written is not changed.

        Raises:
            InvalidInput: when the disk refuses.
        """
        with self._lock:
            state = self._state | changes
            temporary = self._file.with_name(self._file.name + ".new")
            try:
                temporary.write_text(json.dumps(state))
                temporary.replace(self._file)
            except OSError as error:
                raise InvalidInput(f"this cannot be remembered, and so was not done: {error}") from None
            self._state = state
