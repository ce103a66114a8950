"""What the process asks of the system that it computes on."""

import platform
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from redoubt.compute import side_by_side

FAULTS = """
import resource, types, redoubt, torch
from benchmarks.training.floor import parts
from redoubt.compute import keep_memory
torch.set_num_threads(1)
assert not {keep} or keep_memory()
step = parts("compact-cnn", 2, types.SimpleNamespace(seed=0))["step"]
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_a_training_step_that_keeps_its_memory_fetches_next_to_none():
    fetched = [int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], check=True, capture_output=True,
                                  text=True).stdout) for keep in (False, True)]
    assert fetched[1] < 2000
    if fetched[0] < 2000:
        pytest.skip(f"only {fetched[0]} pages were fetched without the setting: nothing to show here")
    assert fetched[1] < fetched[0]


@pytest.fixture
def threads():
    """Sets how many threads torch may use; afterwards it is as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_tasks_beside_each_other_give_their_results_in_order(threads, count):
    threads(count)

    def task(i: int) -> int:
        time.sleep(0.02 if i % 3 == 0 else 0)   # the first of each three ends last
        return i

    assert list(side_by_side((lambda i=i: task(i) for i in range(20)), CPU)) == list(range(20))
    assert list(side_by_side([], CPU)) == []


def test_tasks_share_torchs_threads_and_give_them_back(threads):
    threads(4)
    both = threading.Barrier(4, timeout=30)   # is passed only when four run at a time

    def task() -> int:
        both.wait()
        return torch.get_num_threads()

    assert list(side_by_side([task] * 8, CPU)) == [1] * 8
    assert torch.get_num_threads() == 4
    fresh = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert fresh == [4]


def test_with_one_thread_or_on_a_gpu_tasks_run_where_they_were_given(threads):
    for count, where in ((1, CPU), (4, torch.device("cuda"))):
        threads(count)
        assert set(side_by_side([threading.get_ident] * 6, where)) == {threading.get_ident()}


def test_tasks_are_taken_few_at_a_time_and_none_after_a_failure(threads):
    threads(2)
    taken, gate = [], threading.Event()

    def task(i: int) -> int:
        if i == 3:
            raise ValueError("the third")
        gate.wait(30)
        return i

    def tasks():
        for i in range(100):
            taken.append(i)
            yield lambda i=i: task(i)

    threading.Timer(0.2, gate.set).start()
    with pytest.raises(ValueError, match="the third"):
        list(side_by_side(tasks(), CPU))
    assert len(taken) <= 8 and torch.get_num_threads() == 2


def test_a_long_task_keeps_no_other_waiting(threads):
    """The first ends when the last has: were results only taken in turn, it would never."""
    threads(2)
    last = threading.Event()

    def first() -> str:
        return "in time" if last.wait(30) else "too late"

    assert list(side_by_side([first, *[lambda: "between"] * 20, last.set], CPU)) == ["in time", *["between"] * 20, None]


def test_a_failure_is_told_before_a_long_task_ends(threads):
    threads(2)
    gate, ran = threading.Event(), []

    def fails() -> None:
        threading.Timer(0.3, gate.set).start()   # the pool waits for what is under way
        raise ValueError("at once")

    with pytest.raises(ValueError, match="at once"):
        list(side_by_side([lambda: gate.wait(30), fails, *[lambda: ran.append(0)] * 50], CPU))
    assert len(ran) < 10, "told in its turn, it would have let all others run meanwhile"


@pytest.mark.parametrize("fails", [True, False])
def test_however_it_ends_a_new_thread_gets_torchs_number(threads, fails):
    threads(4)
    results = side_by_side([lambda: 1 / (not fails)] * 9, CPU)
    if fails:
        with pytest.raises(ZeroDivisionError):
            next(results)
    else:
        assert next(results) == 1
        results.close()
    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(torch.get_num_threads).result() == torch.get_num_threads() == 4
