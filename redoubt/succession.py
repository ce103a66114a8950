"""How the champion changes: one change at a time, however many machines ask for one.

MLflow's aliases are last-writer-wins. A run's parameter, though, is written once: its database refuses another value
for the same key. So each change of champion first takes the next number in the parameters of one run, the model's
history, and only who got the number marks the version and sets the aliases. What the run holds is the history, in
order, and MLflow's page shows it like any run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

from redoubt.errors import InvalidInput, Overtaken
from redoubt.promotion.history import GATE, OVERRIDE, ROLLBACK, Transition, entry, standing, transition
from redoubt.version import CHALLENGER, CHAMPION, PREFIX, PREVIOUS, PROMOTED, Version

HISTORY = "redoubt.history"   # tag of the registered model: the id of the run that holds the history
_KEY, _DONE = "champion.{:04d}", ".done"
_SETTLE_SECONDS, _POLL = 5.0, 0.1   # how long the aliases of a change may take to follow it


class Succession:
    """The aliases of one registered model and the history behind them.

    Args:
        client: an MlflowClient; what it raises passes through.
        experiment: gives the id of the experiment that the history's run belongs to.
        version: reads one version; None when it does not exist any more.
    """

    def __init__(
        self, client, model_name: str, experiment: Callable[[], str], version: Callable[[int], Version | None]
    ):
        self._client, self._name, self._experiment, self._version = client, model_name, experiment, version

    def prepare(self) -> None:
        """Make the registered model, with its history, unless it is there."""
        if self._client.search_registered_models(f"name = '{self._name}'"):
            return
        run_id = self._new_run()
        try:
            self._client.create_registered_model(
                self._name, tags={HISTORY: run_id}, description="Served and kept robust by Redoubt")
        except Exception:
            if not self._client.search_registered_models(f"name = '{self._name}'"):
                raise
            self._client.delete_run(run_id)   # another process made both just now

    def read(self) -> list[Transition]:
        """Every change so far, the first one first."""
        run_id = self._client.get_registered_model(self._name).tags.get(HISTORY)
        if run_id is None:   # registered by another tool or an earlier release
            return []
        kept = self._client.get_run(run_id).data.params
        changes = []
        while (key := _KEY.format(len(changes) + 1)) in kept:
            changes.append(entry(kept[key], number=len(changes) + 1, done=key + _DONE in kept))
        return changes

    def champion(self) -> int | None:
        """Whom the alias names."""
        number = self._client.get_registered_model(self._name).aliases.get(CHAMPION)
        return None if number is None else int(number)

    def take(self, change: Transition, expected: int | str | None) -> Transition | None:
        """Make `change.version` the champion.

        Args:
            expected: who must be champion now, or "any".

        Returns:
            The change with its number; None when the version was champion already, and serving follows it.

        Raises:
            Overtaken: when somebody else is champion, or just became it.
        """
        history = self.settle()
        now = self.champion()
        by_hand = now == change.version and not self._followed(now, history)
        if now == change.version and not by_hand:
            return None
        if expected not in ("any", now):
            raise Overtaken(_why(expected, now, history))
        last = history[-1].version if history else None
        return self._enter(replace(change, over=last if by_hand else now), history)

    def give_back(self, *, why: str = "") -> Transition:
        """Make the champion before this one the champion again.

        Raises:
            InvalidInput: when none is left that serving would follow.
            Overtaken: when the champion just changed.
        """
        history, now = self.settle(), self.champion()
        able, withdrawn, passed_over = self.behind(history, now)
        if not able:
            words = "".join(f"; {what}: {', '.join(map(str, sorted(which)))}" for what, which in (
                ("rolled back from", withdrawn), ("passed neither by the gate nor by a person", passed_over)) if which)
            raise InvalidInput(f"{self._name} has no previous_champion to roll back to: {now or 'nobody'} is champion"
                               f"{words}. `redoubt models list --model {self._name}` shows every version, `redoubt "
                               f"promote {self._name} VERSION` takes one")
        return self._enter(transition(able[-1], now, ROLLBACK, why=why), history)

    def behind(self, history: list[Transition], now: int | None) -> tuple[list[int], set[int], set[int]]:
        """Who stands behind the champion `now`: whom a rollback may return to, the nearest last; who was rolled back
        from; and whom serving would not follow. Without a history, whom the alias names."""
        line, withdrawn = standing(history, now)
        if not history:
            number = self._client.get_registered_model(self._name).aliases.get(PREVIOUS)
            line = [] if number is None else [int(number)]
        able = [number for number in line if self._followed(number, history)]
        return able, withdrawn, set(line) - set(able)

    def settle(self) -> list[Transition]:
        """The history, once the aliases have followed its last change. A process that died in between is helped."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            history = self.read()
            if not history or history[-1].done or not history[-1].version:
                return history
            if time.monotonic() > deadline:
                self._set_aliases(history)
                return self.read()
            time.sleep(_POLL)

    # -- writing ------------------------------------------------------------------------------------------------

    def _enter(self, change: Transition, history: list[Transition]) -> Transition:
        """Take the next number for a change, then let the aliases follow."""
        run_id, key = self._run(), _KEY.format(len(history) + 1)
        try:
            self._client.log_param(run_id, key, change.text())
        except Exception:
            found = self._client.get_run(run_id).data.params.get(key)
            if found is None:
                raise
            winner = entry(found, number=len(history) + 1, done=False)
            if winner.version == change.version and change.how != ROLLBACK:   # another process promotes the same one
                return self.settle()[-1]
            if found != change.text():
                raise Overtaken(_why(change.over, None, [winner])) from None
        change = replace(change, number=len(history) + 1)
        self._set_aliases([*history, change])
        return change

    def _set_aliases(self, history: list[Transition]) -> None:
        """Mark the version and point the aliases where the last change wants them; a slow process does not undo a
        later change."""
        while True:
            last = history[-1]
            self._mark(last)   # first: serving follows no alias to a version without it
            aliases = self._client.get_registered_model(self._name).aliases
            behind, *_ = self.behind(history, last.version)
            if behind:
                self._client.set_registered_model_alias(self._name, PREVIOUS, str(behind[-1]))
            elif PREVIOUS in aliases:
                self._client.delete_registered_model_alias(self._name, PREVIOUS)
            self._client.set_registered_model_alias(self._name, CHAMPION, str(last.version))
            if str(aliases.get(CHALLENGER)) == str(last.version):
                self._client.delete_registered_model_alias(self._name, CHALLENGER)
            self._client.log_param(self._run(), _KEY.format(last.number) + _DONE, "yes")
            history = self.read()
            if history[-1].number == last.number:
                return

    def _mark(self, change: Transition) -> None:
        """Say on the version that it is promoted, and by whom against the gate."""
        tags = {PROMOTED: _KEY.format(change.number)}
        if change.how == GATE:
            tags["gate"] = "promoted"
        elif change.how == OVERRIDE:
            note = {"reason": change.why, "by": change.by, "at": change.at}
            tags |= {"override": json.dumps(note), "gate": "overridden"}
        for key, value in tags.items():
            self._client.set_model_version_tag(self._name, str(change.version), PREFIX + key, value)

    def _followed(self, number: int, history: list[Transition]) -> bool:
        """Whether serving follows the alias to a version, or will once it is marked: it was promoted before."""
        version = self._version(number)
        promoted = any(change.version == number and change.how in (GATE, OVERRIDE) for change in history)
        return version is not None and (version.sanctioned or promoted)

    def _run(self) -> str:
        """The id of the run that holds the history, made when a model from elsewhere has none."""
        run_id = self._client.get_registered_model(self._name).tags.get(HISTORY)
        if run_id is None:
            self._client.set_registered_model_tag(self._name, HISTORY, self._new_run())
            time.sleep(_POLL)   # of two that make one at the same time both then see the later
            run_id = self._client.get_registered_model(self._name).tags[HISTORY]
        return run_id

    def _new_run(self) -> str:
        note = f"Every change of champion of {self._name}, in order. Redoubt reads it: keep it."
        tags = {"mlflow.note.content": note}
        run_id = self._client.create_run(self._experiment(), run_name="champion history", tags=tags).info.run_id
        self._client.set_terminated(run_id)
        return run_id


def _why(expected: int | str | None, now: int | None, history: list[Transition]) -> str:
    """Why a promotion came too late, with what is known of the one that came first."""
    before = f"version {expected}" if expected else "no version"
    last = history[-1] if history else None
    if last is not None and (now is None or last.version == now):
        return f"{last}, while this was judged against {before}"
    return f"version {now} is champion now, by hand, while this was judged against {before}" if now else (
        f"there is no champion any more, while this was judged against {before}")
