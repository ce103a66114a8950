"""Following the champion: swaps under load, and what happens when registry or version are not in order."""

import gc
import json
import os
import shutil
import threading

import httpx
import pytest
import torch
from serving_support import FolderRegistry, wait_until

from redoubt.bundle import open_bundle, seal
from redoubt.registry import Registry
from serving import champion, engine


def test_no_champion_is_not_ready_and_says_so(live, registry):
    registry.number = None
    running = live(registry, ready=False)
    wait_until(lambda: "no champion" in (running.status()["problem"] or ""))
    for path in ("/v2/health/ready", "/v2/models/digits", "/v2/models/digits/ready"):
        got = running.client.get(path)
        assert got.status_code == 503
        assert "no champion" in got.json()["error"]
    assert running.client.get("/v2/health/live").status_code == 200
    assert running.infer(torch.zeros(1, 1, 8, 8)).status_code == 503
    assert running.status()["ready"] is False
    registry.number = 1
    wait_until(lambda: running.status()["ready"])
    assert running.status()["problem"] is None


def test_twenty_swaps_under_load_lose_nothing(live, registry, make_bundle, other_model):
    registry.folders[2] = make_bundle(detector=False, model=other_model)
    running = live(registry, poll_seconds=0.01)
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = {
        str(number): open_bundle(folder).model()(x).softmax(1).flatten().tolist()
        for number, folder in registry.folders.items()
    }
    done, versions, wrong = threading.Event(), set(), []

    def load():
        with httpx.Client(base_url=running.client.base_url, trust_env=False, timeout=20) as client:
            data = {"name": "input", "shape": [4, 1, 8, 8], "datatype": "FP32", "data": x.flatten().tolist()}
            while not done.is_set():
                got = client.post("/v2/models/digits/infer", json={"inputs": [data]})
                if got.status_code != 200:
                    wrong.append(got.text)
                    continue
                answer = got.json()
                versions.add(answer["model_version"])
                if answer["outputs"][1]["data"] != pytest.approx(expected[answer["model_version"]], abs=1e-5):
                    wrong.append(answer)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        registry.number = 3 - registry.number
        wait_until(lambda: running.server.engine.current.version == str(registry.number), what="the swap")
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert versions == {"1", "2"}
    status = running.status()
    assert status["requests"]["failed"] == 0
    assert len(status["swaps"]) == 21
    assert all(swap["seconds"] >= 0 for swap in status["swaps"])
    assert len(registry.fetches) == 2   # a version that was here before is taken from disk or memory


def test_a_version_that_loads_beside_another_pauses_between_its_steps(live, registry, make_bundle, monkeypatch):
    pauses = []
    monkeypatch.setattr(engine, "pause", lambda: pauses.append(threading.current_thread().name))
    registry.folders[2] = make_bundle()
    running = live(registry)
    assert pauses == []   # nobody waits before the first
    registry.number = 2
    wait_until(lambda: running.server.engine.current.version == "2")
    assert len(pauses) >= 5
    assert set(pauses) == {"champion"}


def test_what_is_loaded_for_good_is_out_of_the_collector_s_rounds(live, registry):
    live(registry)
    assert gc.get_freeze_count() > 50_000


@pytest.mark.parametrize("decision, why", [
    ("", "the gate has not judged it"),
    ('{"passed": false, "reason": "worse than the champion"}', "the gate refused it (worse than the champion)"),
], ids=["not judged", "refused"])
def test_an_alias_set_by_hand_is_followed_only_to_what_the_gate_passed(live, registry, make_bundle, decision, why):
    registry.folders[2] = make_bundle(detector=False)
    running = live(registry)
    registry.decision, registry.number = decision, 2
    problem = wait_until(lambda: running.status()["problem"])
    assert f"the alias champion names version 2, but {why}; version 1 goes on" in problem
    assert "`redoubt promote digits 2`" in problem
    assert running.status()["champion"]["version"] == "1"
    running = live(registry, again=True)   # a restart takes the champion that served last
    assert running.status()["champion"]["version"] == "1"
    wait_until(lambda: "version 1 goes on" in (running.status()["problem"] or ""))
    registry.decision = '{"passed": true}'
    wait_until(lambda: running.status()["champion"]["version"] == "2")
    assert "alias" not in (running.status()["problem"] or "")


def test_a_setting_follows_the_alias_anywhere(live, registry):
    registry.decision = ""
    nobody = live(registry, ready=False)
    wait_until(lambda: "nothing is served" in (nobody.status()["problem"] or ""))
    running = live(registry, again=True, require_decision=False)
    assert running.status()["champion"]["version"] == "1"


def spoil(folder, how: str) -> None:
    if how == "altered":
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(500)
            file.write(b"\xff\xfe\xfd")
    elif how == "missing":
        (folder / "detector.safetensors").unlink()
    elif how == "manifest":
        (folder / "manifest.json").write_text("{}")
    elif how == "nan":   # every checksum is right, the model is not
        from safetensors.torch import load_file, save_file

        weights = {key: value * float("nan") for key, value in load_file(folder / "model.safetensors").items()}
        save_file(weights, folder / "model.safetensors")
        seal(folder)
    elif how == "detector":
        (folder / "detector.json").write_text('{"format": 99}')
        seal(folder)


@pytest.mark.parametrize("how", ["altered", "missing", "manifest", "nan", "detector"])
def test_a_bad_folder_is_refused_and_the_old_model_goes_on(live, registry, make_bundle, defended, how):
    registry.folders[2] = make_bundle()
    spoil(registry.folders[2], how)
    running = live(registry)
    registry.number = 2
    wait_until(lambda: "version 2 is refused" in (running.status()["problem"] or ""))
    status = running.status()
    assert status["ready"]
    assert status["champion"]["version"] == "1"
    assert running.infer(torch.zeros(1, 1, 8, 8)).json()["model_version"] == "1"
    registry.folders[3], registry.number = defended, 3
    wait_until(lambda: running.status()["champion"]["version"] == "3")
    assert running.status()["problem"] is None


def test_a_refused_version_is_tried_again_with_growing_pauses(live, registry, make_bundle):
    registry.folders[2] = make_bundle()
    good = (registry.folders[2] / "model.safetensors").read_bytes()
    spoil(registry.folders[2], "altered")
    running = live(registry, poll_seconds=0.02)
    registry.number = 2
    wait_until(lambda: len(registry.fetches) >= 6)   # one was for version 1
    assert registry.fetches[5] - registry.fetches[4] > 0.15   # 0.02, 0.04, 0.08, then 0.16 s
    (registry.folders[2] / "model.safetensors").write_bytes(good)
    wait_until(lambda: running.status()["champion"]["version"] == "2")


def test_a_registry_that_is_down_changes_nothing(live, registry):
    running = live(registry)
    registry.down = True
    wait_until(lambda: "registry is down" in (running.status()["problem"] or ""))
    assert running.infer(torch.zeros(1, 1, 8, 8)).status_code == 200
    registry.down = False
    wait_until(lambda: running.status()["problem"] is None)


def test_a_registry_that_hangs_is_noticed_before_its_client_gives_up(live, registry, monkeypatch):
    monkeypatch.setitem(champion._PATIENCE, "answer", 0.3)
    running, answer, hanging = live(registry, poll_seconds=0.1), registry.champion, threading.Event()

    def hang():
        hanging.wait(20)
        return answer()

    assert running.status()["problem"] is None
    monkeypatch.setattr(registry, "champion", hang)
    wait_until(lambda: "longer than 0.3 s to answer" in running.status()["problems"].get("registry", ""), 10)
    assert running.infer(torch.zeros(1, 1, 8, 8)).status_code == 200
    hanging.set()
    wait_until(lambda: running.status()["problem"] is None)


def test_a_version_that_the_registry_does_not_hand_over_is_noticed(live, light, untrained, monkeypatch):
    monkeypatch.setitem(champion._PATIENCE, "hand over a version", 0.3)
    light.folders[2] = untrained
    running, fetch, hanging = live(light, poll_seconds=0.1), light.fetch, threading.Event()

    def hang(version, folder):
        hanging.wait(20)
        return fetch(version, folder)

    monkeypatch.setattr(light, "fetch", hang)
    light.number = 2
    says = "longer than 0.3 s to hand over a version"
    wait_until(lambda: says in running.status()["problems"].get("registry", ""), 10)
    assert running.infer(torch.zeros(1, 1, 8, 8)).json()["model_version"] == "1"
    hanging.set()
    wait_until(lambda: running.status()["champion"]["version"] == "2")
    wait_until(lambda: "registry" not in running.status()["problems"])


def test_a_champion_that_errs_is_rolled_back_while_the_registry_hangs(live, light, untrained, monkeypatch):
    light.folders[2] = untrained
    running, answer = live(light, poll_seconds=0.1), light.champion
    asked, hanging = threading.Event(), threading.Event()
    follower, engine = running.server.champion, running.server.engine
    light.number = 2
    wait_until(lambda: engine.current.version == "2")

    def hang():
        asked.set()
        hanging.wait(20)
        return answer()

    monkeypatch.setattr(light, "champion", hang)
    assert asked.wait(5)
    follower.reject(engine.current, "for the test")
    wait_until(lambda: engine.current.version == "1", 5)
    hanging.set()
    wait_until(lambda: "rolled back: for the test; version 1 goes on" in (running.status()["problem"] or ""))
    assert [swap["version"] for swap in follower.swaps] == ["1", "2", "1"]


def test_a_start_without_registry_serves_the_last_champion(live, registry):
    live(registry)
    registry.down = True
    running = live(registry, again=True)
    assert running.infer(torch.zeros(1, 1, 8, 8)).json()["model_version"] == "1"
    assert "registry is down" in running.status()["problem"]


def test_a_damaged_copy_is_fetched_again(live, registry):
    first = live(registry)
    copy, = (first.server.settings.home / "models" / "digits").glob("1-*/")
    shutil.rmtree(copy)
    copy.mkdir()
    live(registry, again=True)
    assert len(registry.fetches) == 2


def kept(running) -> set[str]:
    return {entry.name for entry in (running.server.settings.home / "models" / "digits").iterdir() if entry.is_dir()}


@pytest.mark.parametrize("how", ["at a start", "while it serves"])
def test_the_same_number_in_another_registry_is_another_version(live, registry, make_bundle, other_model, how):
    other = FolderRegistry({1: make_bundle(detector=False, model=other_model)}, 1, name="b")
    x = torch.zeros(1, 1, 8, 8)
    expected = open_bundle(other.folders[1]).model()(x).softmax(1).flatten().tolist()
    running = live(registry)
    if how == "at a start":
        running = live(other, again=True)
    else:
        registry.folders, registry.name = other.folders, other.name
    want = pytest.approx(expected)
    wait_until(lambda: running.infer(x).json()["outputs"][1]["data"] == want, what="the other weights")
    assert running.status()["champion"]["version"] == "1"
    remembered = json.loads((running.server.settings.home / "models" / "digits" / "champion.json").read_text())
    assert (remembered["version"], remembered["run_id"]) == ("1", f"b{1:032}")


def test_folders_of_versions_long_gone_are_removed(live, registry, defended, plain):
    registry.folders |= {2: defended, 3: plain}
    running = live(registry)
    models = running.server.settings.home / "models" / "digits"
    (models / ".fetch-now").mkdir()
    (models / ".fetch-long-ago").mkdir()
    os.utime(models / ".fetch-long-ago", (1, 1))
    for registry.number in (2, 3):
        wait_until(lambda: running.status()["champion"]["version"] == str(registry.number))
    two = {f"2-a{0:011}", f"3-a{0:011}"}
    wait_until(lambda: kept(running) == {".fetch-now"} | two, what="the tidying")
    running = live(registry, again=True)   # who served before is remembered
    assert kept(running) == {".fetch-now"} | two
    registry.number = 2
    wait_until(lambda: running.status()["champion"]["version"] == "2")
    assert len(registry.fetches) == 3


def test_going_back_takes_the_model_that_is_still_warm(live, registry, defended):
    registry.folders[2] = defended
    running = live(registry)
    first = running.server.engine.current
    registry.number = 2
    wait_until(lambda: running.server.engine.current is not first)
    registry.number = 1
    wait_until(lambda: running.server.engine.current is first)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")   # MLflow's own, on its first use
def test_the_real_registry(live, mlflow_uri, defended, tmp_path):
    (tmp_path / "other").mkdir()
    registry = Registry(mlflow_uri, "digits")
    running = live(registry)
    assert running.infer(torch.zeros(1, 1, 8, 8)).json()["model_version"] == "1"
    nobody = live(Registry(mlflow_uri, "letters"), home=tmp_path / "other", ready=False)
    wait_until(lambda: "no champion" in (nobody.status()["problem"] or ""))
    second = registry.register(open_bundle(defended), metrics={}, parameters={}, tags={})
    registry.promote(second, override="a test")
    wait_until(lambda: running.status()["champion"]["version"] == "2")
    assert running.status()["champion"]["threats"] == [{"norm": "Linf", "epsilon": 0.3}]
    registry.rollback()
    wait_until(lambda: running.status()["champion"]["version"] == "1")
