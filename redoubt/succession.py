"""How the champion changes: one change at a time, however many machines ask for one.

MLflow's aliases are last-writer-wins. A run's parameter, though, is written once: its database refuses another value
for the same key. So each change of champion first takes the next number in the parameters of one run, the model's
history, and only who got the number sets the aliases. What the run holds is the history, in order, and MLflow's page
shows it like any run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

from redoubt.errors import InvalidInput, Overtaken
from redoubt.promotion.history import ROLLBACK, Transition, standing, transition
from redoubt.version import CHALLENGER, CHAMPION, PREVIOUS

HISTORY = "redoubt.history"   # tag of the registered model: the id of the run that holds the history
_KEY, _DONE = "champion.{:04d}", ".done"
_SETTLE_SECONDS, _POLL = 5.0, 0.1   # how long the aliases of a change may take to follow it


class Succession:
    """The aliases of one registered model and the history behind them.

    Args:
        client: an MlflowClient; what it raises passes through.
        experiment: gives the id of the experiment that the history's run belongs to.
    """

    def __init__(self, client, model_name: str, experiment: Callable[[], str]):
        self._client, self._name, self._experiment = client, model_name, experiment

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
            changes.append(Transition(**json.loads(kept[key]), number=len(changes) + 1, done=key + _DONE in kept))
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
            The change with its number; None when the version was champion already.

        Raises:
            Overtaken: when somebody else is champion, or just became it.
        """
        history = self.settle()
        now = self.champion()
        if now == change.version:
            return None
        if expected not in ("any", now):
            raise Overtaken(_why(expected, now, history))
        return self._enter(replace(change, over=now), history)

    def give_back(self, eligible: set[int], *, why: str = "") -> Transition:
        """Make the champion before this one the champion again.

        Args:
            eligible: versions that exist and that were not refused.

        Raises:
            InvalidInput: when no such champion is left.
            Overtaken: when the champion just changed.
        """
        history, now = self.settle(), self.champion()
        behind, withdrawn = self._behind(history, now)
        able = [version for version in behind if version in eligible]
        if not able:
            passed_over = "; rolled back from: " + ", ".join(map(str, sorted(withdrawn))) if withdrawn else ""
            raise InvalidInput(f"{self._name} has no previous_champion to roll back to: {now or 'nobody'} is champion"
                               f"{passed_over}. `redoubt models list` shows every version, `redoubt promote` takes one")
        return self._enter(transition(able[-1], now, ROLLBACK, why=why), history)

    def settle(self) -> list[Transition]:
        """The history, once the aliases have followed its last change. A process that died in between is helped."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            history = self.read()
            if not history or history[-1].done:
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
            winner = Transition(**json.loads(found), number=len(history) + 1)
            if winner.version == change.version and change.how != ROLLBACK:   # another process promotes the same one
                return self.settle()[-1]
            if found != change.text():
                raise Overtaken(_why(change.over, None, [winner])) from None
        change = replace(change, number=len(history) + 1)
        self._set_aliases([*history, change])
        return change

    def _set_aliases(self, history: list[Transition]) -> None:
        """Point the aliases where the last change wants them; a slow process does not undo a later change."""
        while True:
            last = history[-1]
            aliases = self._client.get_registered_model(self._name).aliases
            behind, _ = standing(history, last.version)
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

    def _behind(self, history: list[Transition], now: int | None) -> tuple[list[int], set[int]]:
        """Who stands behind the champion; without a history, whom the alias names."""
        behind, withdrawn = standing(history, now)
        if not history:
            number = self._client.get_registered_model(self._name).aliases.get(PREVIOUS)
            behind = [] if number is None else [int(number)]
        return behind, withdrawn

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
