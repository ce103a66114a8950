"""Champions change one at a time, also when two ask at once, and whatever ends a process in between."""

import multiprocessing
import threading

import pytest

from redoubt import succession
from redoubt.bundle import write_bundle
from redoubt.errors import InvalidInput, Overtaken, Refused, RegistryError
from redoubt.models import Architecture, build
from redoubt.promotion.history import transition
from redoubt.registry import Registry


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("registry")


@pytest.fixture
def registry(home, request):
    """A registry whose versions 1 to 4 a person stands behind; none is champion."""
    name = request.node.name.replace("[", "-").replace("]", "")[-60:].lstrip("_")
    registry = Registry(f"sqlite:///{home / 'mlflow.db'}", name)
    model = build(Architecture(name="compact-cnn", num_classes=2, channels=1, size=8, mean=(0.5,), std=(0.5,)))
    bundle = write_bundle(home / name, model, classes=["a", "b"], threats=())
    for _ in range(4):
        sanction(registry, registry.register(bundle, metrics={}, parameters={}, tags={}))
    return registry


def sanction(registry, version):
    registry.tag(version, decision='{"passed": true, "reason": "every rule passed"}')


def champions(registry):
    return [change.version for change in registry.history()]


def aliases(registry):
    return {alias: version.number for version in registry.versions() for alias in version.aliases}


def promote(registry, *numbers):
    for number in numbers:
        registry.promote(registry.version(number))


def by_hand(registry, alias, number):
    with registry._mlflow("set an alias by hand") as client:
        client.set_registered_model_alias(registry.model_name, alias, str(number))


def test_rolling_back_again_goes_further_back(registry):
    promote(registry, 1, 2, 3)
    assert registry.rollback(why="it is slow").number == 2
    assert aliases(registry)["previous_champion"] == 1
    assert registry.rollback().number == 1
    with pytest.raises(InvalidInput, match="1 is champion; rolled back from: 2, 3"):
        registry.rollback()
    assert champions(registry) == [1, 2, 3, 2, 1]
    assert registry.history()[3].why == "it is slow"
    promote(registry, 3)
    assert registry.rollback().number == 1, "2 was rolled back from"


def test_it_never_goes_to_a_version_that_the_gate_refused(registry):
    promote(registry, 1, 2)
    by_hand(registry, "champion", 3)   # in MLflow's page
    promote(registry, 4)
    registry.tag(registry.version(3), decision='{"passed": false, "reason": "worse"}')
    assert registry.rollback().number == 2


REFUSED = {"passed": False, "reason": "no better than version 3"}


def unjudged(registry, number):
    with registry._mlflow("forget the decision") as client:
        client.delete_model_version_tag(registry.model_name, str(number), "redoubt.decision")


def test_a_former_champion_that_the_gate_refuses_against_a_later_one_stays_one_to_return_to(registry):
    promote(registry, 1, 2, 3)
    registry.judged(registry.version(2), REFUSED, "refused")
    assert (registry.version(2).passed, registry.version(2).sanctioned) == (False, True)
    with pytest.raises(Refused, match="no better than version 3"):
        registry.promote(registry.version(2))
    assert registry.rollback().number == 2
    assert registry.champion().sanctioned, "serving follows it"


def test_so_does_one_that_was_set_by_hand_or_whose_mark_is_missing(registry):
    promote(registry, 1)
    by_hand(registry, "champion", 2)
    promote(registry, 3, 4)
    registry.judged(registry.version(2), REFUSED, "refused")
    registry.judged(registry.version(3), REFUSED, "refused")
    with registry._mlflow("as an earlier release left it") as client:
        client.delete_model_version_tag(registry.model_name, "3", "redoubt.promoted")
    for number in (3, 2, 1):
        assert registry.rollback().number == number
        assert registry.champion().sanctioned


def test_a_challenger_that_was_never_champion_is_not_sanctioned_by_what_it_once_passed(registry):
    promote(registry, 1)
    registry.judged(registry.version(2), REFUSED, "refused")
    assert not registry.version(2).sanctioned


def test_it_never_goes_to_a_version_that_serving_would_not_follow(registry):
    promote(registry, 1)
    by_hand(registry, "champion", 3)
    unjudged(registry, 3)
    promote(registry, 4)
    assert aliases(registry) == {"previous_champion": 1, "champion": 4}
    assert registry.behind() == ([1], set())
    assert registry.rollback().number == 1


def test_where_nobody_that_serving_would_follow_is_left_it_says_so(registry):
    by_hand(registry, "champion", 3)
    unjudged(registry, 3)
    promote(registry, 4)
    assert aliases(registry) == {"champion": 4}
    with pytest.raises(InvalidInput, match="4 is champion; passed neither by the gate nor by a person: 3"):
        registry.rollback()


def test_a_reason_makes_a_champion_that_was_set_by_hand_one_that_is_served(registry):
    promote(registry, 1)
    unjudged(registry, 3)
    by_hand(registry, "champion", 3)
    assert not registry.champion().sanctioned
    registry.promote(registry.version(3), over=registry.champion(), override="it was urgent")
    assert (registry.champion().number, registry.champion().override["reason"]) == (3, "it was urgent")
    assert (registry.history()[-1].version, registry.history()[-1].over) == (3, 1)


def test_whoever_is_overtaken_or_cut_off_leaves_nobody_sanctioned(registry):
    promote(registry, 1)
    unjudged(registry, 2), unjudged(registry, 3)
    registry.promote(registry.version(2), override="first")
    with pytest.raises(Overtaken):
        registry.promote(registry.version(3), over=registry.version(1), override="second")
    assert (registry.version(3).sanctioned, registry.version(3).standing) == (False, "not judged")
    cut_off = Registry(registry.tracking_uri, registry.model_name)
    with cut_off._mlflow("connect") as client:
        cut_off._connected = Dies(client, "log_param", OSError("the cable"))
    with pytest.raises(RegistryError, match="the cable"):
        cut_off.promote(registry.version(3), override="third")
    assert (registry.version(3).sanctioned, registry.version(3).standing) == (False, "not judged")


def test_a_history_with_an_entry_that_cannot_be_read_goes_on(registry):
    promote(registry, 1, 2)
    with registry._mlflow("as an earlier release cut it") as client:
        run_id = client.get_registered_model(registry.model_name).tags[succession.HISTORY]
        client.log_param(run_id, "champion.0003", transition(3, 2, "override", why="x" * 900).text()[:500])
        client.log_param(run_id, "champion.0004", "nonsense")
    assert champions(registry) == [1, 2, 3, 0]
    assert "cannot be read" in registry.history()[2].why
    promote(registry, 4)
    assert champions(registry) == [1, 2, 3, 0, 4]
    assert registry.rollback().number == 2, "the alias never went to 3"


def test_a_champion_set_by_hand_is_rolled_back_to_the_one_before(registry):
    promote(registry, 1, 2)
    by_hand(registry, "champion", 4)
    assert registry.rollback().number == 2
    assert registry.history()[-1].over == 4


def test_a_model_that_another_tool_registered_gets_a_history_with_its_first_change(registry):
    by_hand(registry, "champion", 2)
    by_hand(registry, "previous_champion", 1)
    with registry._mlflow("forget") as client:
        client.delete_registered_model_tag(registry.model_name, succession.HISTORY)
    assert registry.history() == []
    assert registry.rollback().number == 1
    assert [(change.version, change.over) for change in registry.history()] == [(1, 2)]


def _race(uri, name, number, start, results):
    registry = Registry(uri, name)
    version, champion = registry.version(number), registry.champion()
    start.wait()
    try:
        registry.promote(version, over=champion, by=f"process {number}")
        results.put((number, "won"))
    except Overtaken as error:
        results.put((number, str(error)))


def test_of_two_processes_that_promote_at_once_one_wins_and_the_other_sees_why(registry):
    promote(registry, 1)
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    racers = [context.Process(target=_race, args=(registry.tracking_uri, registry.model_name, number, start, results))
              for number in (2, 3)]
    for racer in racers:
        racer.start()
    ends = dict(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join()
    winner = next(number for number, end in ends.items() if end == "won")
    loser = 5 - winner
    assert f"version {winner} became champion over version 1" in ends[loser]
    assert f"process {winner}" in ends[loser]
    assert aliases(registry)["champion"] == winner
    assert champions(registry) == [1, winner]


def test_many_at_once_leave_one_line_and_the_alias_at_its_end(registry):
    """Without a condition on the champion, each gets its turn or is told; the alias is the last of the line."""
    promote(registry, 1)
    told = []

    def change(number):
        try:
            Registry(registry.tracking_uri, registry.model_name).promote(registry.version(number))
        except Overtaken as error:
            told.append(str(error))

    threads = [threading.Thread(target=change, args=(number,)) for number in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes = registry.history()
    assert len(changes) + len(told) == 4
    assert [change.over for change in changes] == [None, *[change.version for change in changes[:-1]]]
    assert aliases(registry)["champion"] == changes[-1].version
    assert all(change.done for change in changes)


class Dies:
    """An MLflow client whose process dies when it is about to call `method`, or that fails there."""

    def __init__(self, client, method, error=KeyboardInterrupt):
        self._client, self._method, self._error = client, method, error

    def __getattr__(self, name):
        if name == self._method:
            raise self._error
        return getattr(self._client, name)


@pytest.mark.parametrize("method", ["set_model_version_tag", "set_registered_model_alias", "log_param"])
def test_a_promotion_that_died_half_way_is_carried_out_or_never_was(registry, monkeypatch, method):
    monkeypatch.setattr(succession, "_SETTLE_SECONDS", 0.2)
    promote(registry, 1)
    unjudged(registry, 2)
    dying = Registry(registry.tracking_uri, registry.model_name)
    with dying._mlflow("connect") as client:
        dying._connected = Dies(client, method)
    with pytest.raises(KeyboardInterrupt):
        dying.promote(registry.version(2), override="urgent")
    assert aliases(registry) == {"champion": 1, "challenger": 4}, "nothing is half promoted"
    undone = method != "log_param"
    assert registry.version(2).sanctioned == (method == "set_registered_model_alias")
    assert [change.done for change in registry.history()] == [True, False][: 1 + undone]
    if undone:   # it had its place in the line: whoever comes next helps it first, and is told
        with pytest.raises(Overtaken, match="version 2 became champion over version 1"):
            registry.promote(registry.version(3), over=registry.version(1))
        assert aliases(registry) == {"champion": 2, "previous_champion": 1, "challenger": 4}
        assert registry.history()[-1].done
        assert (registry.version(2).override["reason"], registry.version(2).standing) == ("urgent", "overridden")


def test_the_history_stands_in_mlflow_for_people_to_see(registry):
    promote(registry, 1, 2)
    with registry._mlflow("look") as client:
        run = client.get_run(client.get_registered_model(registry.model_name).tags[succession.HISTORY])
    assert run.info.run_name == "champion history"
    assert '"version": 2' in run.data.params["champion.0002"]
