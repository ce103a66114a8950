"""Which flagged inputs say how strong an attack is, and that a few clients cannot set it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from serving_support import Scene, model

from redoubt.detection import Strength, Verdicts
from redoubt.detection.groups import least
from serving.evidence import VOICE, Evidence, arriving, select


@dataclass
class Mean:
    """A detector that believes whatever it is given: an input's strength is its first number."""

    null_rate: float = 0.01
    harmless_below: float = 0.0
    read: int = 0

    def campaign(self, evidence):
        self.read, e = len(evidence), evidence[:, 0].mean().item()
        return Strength(norm="Linf", estimate=e, low=0.95 * e, high=1.05 * e, n=len(evidence),
                        harmless=e < self.harmless_below, witnessed=bool(evidence[:, 1].any()))

    def strengths(self, evidence):
        return evidence[:, 0]


def kept(sent: list[tuple[str, float]], *, witnessed=(), few: int = 3) -> Evidence:
    """Evidence of (client, strength) in their order."""
    evidence = Evidence(most=512, minimum=64, few=few)
    for at, (client, strength) in enumerate(sent, 1):
        evidence.keep(at, client, torch.tensor([strength, float(client in witnessed)]))
    return evidence


def crowd(count: int, each: int = 1, strength: float = 0.1) -> list[tuple[str, float]]:
    return [(f"honest {number}", strength) for _ in range(each) for number in range(count)]


def few(each: int, strength: float = 0.3, count: int = 3) -> list[tuple[str, float]]:
    return [(f"few {number}", strength) for _ in range(each) for number in range(count)]


def read(evidence: Evidence, *, patient: bool = True, detector: Mean | None = None) -> Strength | None:
    return evidence.strength(detector or Mean(), seen=evidence._rows[-1][0], patient=patient)


@pytest.mark.parametrize("strength", [0.3, 0.01])
@pytest.mark.parametrize("times", [1, 10, 100])
def test_three_of_a_hundred_set_no_strength_however_much_they_send(strength, times):
    for each in (1, 5):
        found = read(kept(few(times * each, strength) + crowd(97, each)))
        assert found.estimate == pytest.approx(0.1) and found.n >= 64


def test_many_clients_do():
    found = read(kept(crowd(70) + few(10, 0.3, count=30)))
    assert found.estimate > 0.14   # 30 of 100, less three at either end


def test_one_client_alone_is_read_as_it_is():
    detector = Mean()
    found = read(kept(few(64, count=1)), detector=detector)
    assert (found.estimate, found.n, detector.read) == (pytest.approx(0.3), 64, 64)
    assert read(kept(few(700, count=1)), detector=detector).n == 512


def test_false_alarms_of_others_take_nothing_from_an_attack_by_one():
    """61 false alarms among 10,000 inputs, most of them clean: less than the null rate lets expect."""
    evidence = Evidence(most=512, minimum=64, few=3)
    for at in range(1, 62):
        evidence.keep(at * 100, f"passer-by {at}", torch.tensor([0.02, 0.0]))
    for at in range(100):
        evidence.keep(9_900 + at, "attacker", torch.tensor([0.2, 1.0]))
    assert evidence.strength(Mean(), seen=10_000, patient=True).n == 161
    agreed = evidence.strength(Mean(null_rate=1e-6), seen=10_000, patient=False)
    assert agreed.estimate < 0.1, "so many are a campaign where no false alarms are expected"


def test_false_alarms_that_read_strong_do_not_shield_the_few():
    """In 400 inputs 8 false alarms are expected, half of which may read stronger than the attack."""
    evidence = kept(few(1) + [(f"passer-by {number}", 0.4) for number in range(3)] + crowd(70))
    assert evidence.strength(Mean(null_rate=0.02), seen=400, patient=True).estimate == pytest.approx(0.1)
    assert evidence.strength(Mean(null_rate=0.0), seen=400, patient=True).estimate > 0.105


def test_what_is_harmless_by_many_hides_no_attack_by_a_few():
    found = read(kept(crowd(80, strength=0.02) + few(30)), detector=Mean(harmless_below=0.05))
    assert not found.harmless and found.estimate > 0.1


def test_whether_it_is_an_attack_is_asked_of_everybody():
    """A client that sends much spends what the model is asked; the others' inputs bear no witness of their own."""
    assert read(kept(crowd(97) + few(10), witnessed={"few 0"})).witnessed
    assert not read(kept(crowd(97) + few(10))).witnessed


def test_it_waits_while_clients_arrive_and_few_hold_much():
    sent = few(5) + crowd(49)
    assert read(kept(sent)) is None
    assert read(kept(sent), patient=False).n == 64
    assert read(kept(sent + crowd(49, 2))).n == 3 * 49 + 3 * 3, "nobody new came"
    assert read(kept(sent + crowd(97)[49:64])).estimate == pytest.approx(0.1), "64 clients are enough"


def test_it_waits_no_longer_than_memory_lasts():
    sent = few(1000, count=4)[: 1024 - 20] + crowd(20)
    assert read(kept(sent)) is not None
    assert read(kept(sent[1:])) is None


@pytest.mark.parametrize("count", range(4, 20))
def test_of_a_small_campaign_something_is_left(count):
    evidence = Evidence(most=512, minimum=4, few=3)
    for at in range(1, count + 1):
        evidence.keep(at, f"honest {at}", torch.tensor([0.1, 1.0]))
    detector = Mean()
    assert evidence.strength(detector, seen=count, patient=True).estimate == pytest.approx(0.1)
    assert detector.read >= count / 4


def test_anybody_may_set_it_where_nobody_is_few():
    assert read(kept(few(10) + crowd(34), few=0)).n == 64


def test_a_few_are_never_heard_in_a_level_selection():
    generator = torch.Generator().manual_seed(0)
    levels = 0
    for _ in range(60):
        weight = torch.rand(int(torch.randint(5, 200, (), generator=generator)), generator=generator) ** 3 + 0.02
        count = int(torch.randint(64, 1024, (), generator=generator))
        clients = [str(one) for one in torch.multinomial(weight, count, True, generator=generator).tolist()]
        found = select(clients, few=3, minimum=64, most=512)
        if found is None:
            continue
        sent = [clients[row] for row in found.rows]
        assert 64 <= len(sent) <= 512 and found.rows == sorted(set(found.rows))
        most = sum(sorted((sent.count(one) for one in set(sent)), reverse=True)[:3])
        assert most <= found.foreign
        levels += found.level
        assert not found.level or most <= VOICE * least(len(sent))
    assert levels > 5


def test_each_clients_newest_inputs_are_taken():
    found = select([str(number) for number in range(80)] * 3, few=3, minimum=64, most=512)
    assert found.rows == list(range(160, 240)) and found.level


def test_new_clients_are_noticed():
    assert arriving(["a", "b", "a", "c"], 0)
    assert not arriving(["a", "b", "b", "a"], 0)
    assert not arriving([], 0)


def test_a_burst_of_a_few_does_not_hide_that_others_arrive():
    assert read(kept(crowd(50) + few(40))) is None
    assert read(kept(crowd(50, 2) + few(40))) is not None


def send(scene: Scene, sent: list[tuple[str, float]]) -> None:
    """Flagged inputs, each of its own pixels, through the watch."""
    x = torch.zeros(len(sent), 1, 8, 8)
    for row in x:
        scene.sent += 1
        row[0, 0, 0], row[0, 0, 1] = scene.sent % 251 / 251, scene.sent // 251 / 251
    none, flags = torch.zeros(len(x)), torch.ones(len(x), dtype=torch.bool)
    verdicts = Verdicts(score=none, probability=none, is_adversarial=flags, strength=none, low=none, high=none,
                        evidence=torch.tensor([[strength, 1.0] for _, strength in sent]))
    scene.watch.observe(scene.loaded, x, verdicts, [client for client, _ in sent])


def mixed(honest: int, times: int) -> list[tuple[str, float]]:
    """97 clients that send one another's turn, and three that send as much as so many each."""
    return [row for client in crowd(97)[:honest] for row in (client, *few(times, count=3)[: max(1, 3 * times // 97)])]


def test_the_request_of_a_campaign_is_not_steered(settings):
    scene = Scene(settings())
    scene.serve(model("1", detector=Mean()))
    send(scene, mixed(40, 32))
    assert scene.ledger.requests() == []
    assert "few clients sent most" in scene.campaign["reason"]
    send(scene, mixed(97, 32)[80:])
    assert 0.1 < scene.ledger.requests()[0].epsilon <= 0.105 * 1.05
    scene.ledger.close()


def test_an_attack_that_ends_while_more_clients_are_waited_for_is_answered(settings):
    scene = Scene(settings())
    scene.serve(model("1", detector=Mean()))
    send(scene, mixed(40, 32))
    assert scene.campaign["strength"] is None
    scene.send("c" * 200)
    assert len(scene.ledger.requests()) == 1
    assert scene.campaign["state"] == "open"
    scene.ledger.close()
