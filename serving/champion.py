"""Follows the champion alias: fetches the version that it names, loads it beside the old one, then swaps."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from redoubt.bundle import Bundle, open_bundle
from redoubt.errors import ArtifactError, RedoubtError
from redoubt.registry import Version
from serving.calm import freeze
from serving.engine import Engine
from serving.model import LoadedModel, version_key
from serving.problems import Problems

log = logging.getLogger("redoubt.serving")
_REMEMBERED = "champion.json"
_SWAPS_KEPT = 100
_ABANDONED = 24 * 3600.0   # seconds after which a fetch that did not end is nobody's
_LONGEST_WAIT = 60.0   # seconds between two tries at a version that was refused
# Seconds after which the registry is said to be at fault, for what is asked of it.
_PATIENCE = {"answer": 5.0, "hand over a version": 60.0}


class Champions(Protocol):
    """What is needed of the registry."""

    def champion(self) -> Version | None: ...

    def fetch(self, version: Version, folder: Path) -> Bundle: ...


class ChampionFollower:
    """A thread that keeps the engine on the champion. Whatever goes wrong, the model that answers goes on answering.

    Args:
        folder: where fetched versions lie, one folder each: the current, the previous and those being fetched.
        on_model: called with each model right after the swap to it.
        require_decision: serve only what the gate passed or a person promoted with an override. An alias that was set
            by hand, in MLflow's page, is then followed only to such a version.
        trusted: public keys, one of which must have signed what is served; with none no signature is asked for.
    """

    def __init__(
        self, registry: Champions, engine: Engine, problems: Problems, *, folder: Path, poll_seconds: float,
        on_model: Callable[[LoadedModel], None], require_decision: bool = True,
        trusted: Sequence = (),
    ):
        self._registry, self._engine, self._problems, self._require_decision = (
            registry, engine, problems, require_decision)
        self._trusted = trusted
        self._folder, self._poll_seconds, self._on_model = folder, poll_seconds, on_model
        self._refused: tuple[str, float, float] | None = None   # key, when to try again, the wait after that
        self._rejected: tuple[str, str] | None = None   # key, why
        self._owed: tuple[str, float] | None = None   # what the registry owes, a key of _PATIENCE, and since when
        self.swaps: deque[dict] = deque(maxlen=_SWAPS_KEPT)
        self._swapping = threading.RLock()   # two threads may roll back: the one that follows, and who watches over it
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="champion", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Look at the alias now: it is likely to have moved."""
        self._wake.set()

    def reject(self, loaded: LoadedModel, reason: str) -> None:
        """Go back to the version before, and leave this one alone until the alias names another; from any thread."""
        self._rejected = (loaded.key, f"version {loaded.version} was rolled back: {reason}")
        self.wake()

    def check_patience(self) -> None:
        """Say so where the registry takes long to answer, and roll back what is to be rolled back meanwhile; from any
        thread, about once a second. A server that is down refuses at once, one that hangs takes as long as its client
        waits, which is half a minute."""
        owed = self._owed
        if owed is None:
            return
        try:
            self._roll_back(time.monotonic())   # the thread that would do it waits for the registry
        except Exception as error:   # as in that thread: who watches goes on watching
            log.exception("rolling back failed")
            self._problems.note("champion", f"{type(error).__name__}: {error}")
        what, since = owed
        if time.monotonic() - since > _PATIENCE[what] and "registry" not in self._problems.current():
            self._problems.note("registry", f"it takes longer than {_PATIENCE[what]:g} s to {what}")

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)   # it may hang in a registry that does not answer; it is a daemon

    def _loop(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception as error:
                log.exception("following the champion failed")
                self._problems.note("champion", f"{type(error).__name__}: {error}")
            self._wake.wait(self._poll_seconds)
            self._wake.clear()

    def look(self) -> None:
        """One look at the alias, and the swap if it names another version. For one thread at a time."""
        began = time.monotonic()
        self._roll_back(began)
        try:
            with self._owing("answer"):
                champion = self._registry.champion()
        except RedoubtError as error:
            self._problems.note("registry", str(error))
            if self._engine.current is None:
                self._load_remembered(began)
            return
        self._problems.clear("registry")
        if champion is None:
            self._problems.note("champion", "the registry has no champion yet: train one and promote it")
            return
        key, current = version_key(str(champion.number), champion.run_id), self._engine.current
        if self._rejected is not None and self._rejected[0] == key:
            serving = f"; version {current.version} goes on" if current is not None else ""
            self._problems.note("champion", self._rejected[1] + serving)
            return
        self._rejected = None
        if current is not None and current.key == key:
            self._refused = None
            self._problems.clear("champion")
        elif self._require_decision and not champion.sanctioned:
            if current is None:
                self._load_remembered(began, but=key)
            self._problems.note("champion", self._unsanctioned(champion))
        elif self._refused is None or self._refused[0] != key or time.monotonic() >= self._refused[1]:
            self._take_over(champion, key, began)

    @contextmanager
    def _owing(self, what: str) -> Iterator[None]:
        self._owed = what, time.monotonic()
        try:
            yield
        finally:
            self._owed = None

    def _roll_back(self, began: float) -> None:
        """Leave a version that does badly, whatever the registry says."""
        with self._swapping:
            current, previous, rejected = self._engine.current, self._engine.previous, self._rejected
            if rejected is None or current is None or previous is None or current.key != rejected[0]:
                return
            log.error("%s", rejected[1])
            self._swap(previous, began)

    def _take_over(self, champion: Version, key: str, began: float) -> None:
        try:
            previous = self._engine.previous
            if previous is not None and previous.key == key:
                loaded = previous   # a rollback: it is still warm
            else:
                loaded = self._engine.load(self._bundle(champion, key), str(champion.number), champion.run_id)
        except (RedoubtError, OSError) as error:
            last_wait = self._refused[2] if self._refused and self._refused[0] == key else self._poll_seconds / 2
            wait = min(2 * last_wait, _LONGEST_WAIT)
            self._refused = (key, time.monotonic() + wait, wait)
            self._problems.note("champion", f"version {champion.number} is refused: {error}")
            return
        self._swap(loaded, began)

    def _bundle(self, champion: Version, key: str) -> Bundle:
        folder = self._folder / key
        try:
            return open_bundle(folder, trusted=self._trusted)
        except ArtifactError:
            with self._owing("hand over a version"):
                return self._registry.fetch(champion, folder)

    def _unsanctioned(self, champion: Version) -> str:
        """Why a version is not served though the alias names it, and what to do."""
        record, current = champion.decision, self._engine.current
        why = f"the gate refused it ({record['reason']})" if record else "the gate has not judged it"
        stays = f"version {current.version} goes on" if current else "nothing is served"
        return (f"the alias champion names version {champion.number}, but {why}; {stays}. `redoubt promote "
                f"{champion.name} {champion.number}` judges and promotes it, with --override \"reason\" against the "
                f"gate; REDOUBT_REQUIRE_DECISION=false follows the alias as it is")

    def _load_remembered(self, began: float, but: str = "") -> None:
        """Without a registry, or a champion to follow, start with the one that served last, unless it is `but`."""
        try:
            remembered = self._remembered()
            version, run_id = remembered["version"], remembered["run_id"]
            if version_key(version, run_id) == but:
                return
            bundle = open_bundle(self._folder / version_key(version, run_id), trusted=self._trusted)
            loaded = self._engine.load(bundle, version, run_id)
        except (KeyError, TypeError, OSError, RedoubtError):
            return
        self._swap(loaded, began)

    def _swap(self, loaded: LoadedModel, began: float) -> None:
        with self._swapping:
            self._answer_with(loaded, began)

    def _answer_with(self, loaded: LoadedModel, began: float) -> None:
        # What is wrong with it is known before it answers: whoever sees the new version sees the new state, too.
        self._refused = None
        self._problems.clear("champion")
        if loaded.detector is None:
            self._problems.note("detector", f"version {loaded.version} has none: attacks go unseen")
        else:
            self._problems.clear("detector")
        if self._engine.current is None:
            freeze()
        self._engine.swap(loaded)
        seconds = time.monotonic() - began
        self.swaps.append({"version": loaded.version, "at": time.time(), "seconds": seconds})
        self._on_model(loaded)
        log.info("%s: version %s serves, after %.2f s", self._folder.name, loaded.version, seconds)
        try:
            self._remember(loaded)
        except OSError as error:
            log.warning("the champion could not be remembered: %s", error)

    def _remembered(self) -> dict:
        """The champion that served last, as it was written down; empty when there is none."""
        try:
            found = json.loads((self._folder / _REMEMBERED).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _remember(self, loaded: LoadedModel) -> None:
        """Write down who serves and who served before, and remove the folders of all others."""
        last = self._remembered()
        previous = last.get("key") if last.get("key") != loaded.key else last.get("previous")
        self._folder.mkdir(parents=True, exist_ok=True)
        note = {"version": loaded.version, "run_id": loaded.run_id, "key": loaded.key, "previous": previous}
        temporary = self._folder / (_REMEMBERED + ".new")
        temporary.write_text(json.dumps(note))
        temporary.replace(self._folder / _REMEMBERED)
        for folder in self._folder.iterdir():
            being_fetched = folder.name.startswith(".") and time.time() - folder.stat().st_mtime < _ABANDONED
            if folder.is_dir() and folder.name not in (loaded.key, previous) and not being_fetched:
                shutil.rmtree(folder, ignore_errors=True)
