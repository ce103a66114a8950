"""A run's steps, out of the workflow's nodes as the server lists them: by hash, with drivers, executors and retries."""

import pytest

from redoubt.cluster.runs import Run


def node(name: str, state: str, begin: int = 0, end: int | None = None) -> dict:
    stamp = "2026-11-20T10:{:02d}:{:02d}Z"
    return {"display_name": name, "state": state, "start_time": stamp.format(*divmod(begin, 60)),
            "end_time": "0001-01-01T00:00:00Z" if end is None else stamp.format(*divmod(end, 60))}


def run(*nodes: dict, state: str = "RUNNING") -> Run:
    return Run.of({"run_id": "1", "display_name": "r", "state": state, "run_details": {"task_details": list(nodes)}})


AROUND = (node("redoubt-x7k2p", "RUNNING"), node("root", "RUNNING", 9), node("root-driver", "SUCCEEDED", 0, 8))


def shown(one: Run) -> list[tuple[str, str]]:
    return [(task.name, task.state) for task in one.tasks]


def test_what_the_server_puts_round_the_steps_is_none():
    one = run(node("executor(0)", "FAILED", 21, 40), node("prepare-data", "RUNNING", 20), *AROUND,
              node("executor(1)", "RUNNING", 41), node("executor", "RUNNING", 21),
              node("prepare-data-driver", "SUCCEEDED", 15, 19), node("begin", "SUCCEEDED", 11, 14),
              node("begin-driver", "SUCCEEDED", 9, 10), node("train-driver", "RUNTIME_STATE_UNSPECIFIED", 0))
    assert shown(one) == [("begin", "SUCCEEDED"), ("prepare_data", "RUNNING")]
    assert one.step == "prepare_data"


def test_a_step_that_the_cache_answered_is_told_from_one_that_ran():
    one = run(*AROUND, node("begin-driver", "SUCCEEDED", 9, 10), node("begin", "SUCCEEDED", 10, 25),
              node("executor", "SUCCEEDED", 10, 25), node("train-driver", "SUCCEEDED", 26, 27),
              node("train", "SUCCEEDED", 30, 30), node("executor", "SKIPPED", 30, 30))
    assert shown(one) == [("begin", "SUCCEEDED"), ("train", "SKIPPED")]


@pytest.mark.parametrize("failed", [
    [node("train-driver", "SUCCEEDED", 9, 10), node("train", "FAILED", 11, 30), node("executor(0)", "FAILED", 11, 30)],
    [node("train-driver", "FAILED", 9, 10), node("train", "SKIPPED", 10, 10)],
], ids=["step", "driver"])
def test_the_step_that_failed_is_named_and_not_those_behind_it(failed):
    behind = [node("evaluate-driver", "SKIPPED", 31, 31), node("evaluate", "SKIPPED", 31, 31)]
    one = run(node("redoubt-x7k2p", "FAILED"), node("root", "FAILED"), *behind, *failed, state="FAILED")
    assert shown(one) == [("train", "FAILED")]
    assert one.reason == "the step train failed"


def test_a_sweeps_loop_and_a_condition_are_no_steps():
    frames = [node(name, "RUNNING", 5) for name in ("for-loop-1", "condition-2")]
    drivers = [node(f"{name}-driver", "SUCCEEDED", 4, 5) for name in ("for-loop-1", "condition-2", "train")]
    assert shown(run(*AROUND, *frames, *drivers, node("train", "RUNNING", 7))) == [("train", "RUNNING")]


@pytest.mark.parametrize("pods, at_work", [
    ([node("executor", "RUNNING", 11), node("executor(0)", "PENDING", 11)], False),
    ([node("executor", "RUNNING", 11), node("executor(0)", "FAILED", 11), node("executor(1)", "RUNNING", 30)], True),
    ([node("executor", "PENDING", 11)], False), ([node("executor", "RUNNING", 11)], True), ([], False),
], ids=["waits for a node", "second try", "waits, without retries", "runs, without retries", "no pod yet"])
def test_a_step_is_at_work_once_its_pod_runs(pods, at_work):
    assert run(node("train-driver", "SUCCEEDED", 9, 10), node("train", "RUNNING", 11), *pods).at_work == at_work


def test_a_server_without_drivers_lists_its_steps_alone():
    assert shown(run(node("root", "RUNNING"), node("begin", "SUCCEEDED", 1, 2), node("train", "RUNNING", 3))) == [
        ("begin", "SUCCEEDED"), ("train", "RUNNING")]
