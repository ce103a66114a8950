"""The training benchmarks' arithmetic, and the cells that they keep."""

import torch

from benchmarks import cells
from benchmarks.training.floor import interleaved, share
from benchmarks.training.long_tail import long_tailed


def test_the_floor_is_the_attack_passes_and_one_weight_pass_compared_in_each_round_with_itself():
    took = {"attack passes": [8.0, 80.0, 8.0], "weight pass": [2.0, 10.0, 1.0], "gradients": [10.0, 100.0, 12.0]}
    assert share(took, "gradients") == 0.9   # of 1, 0.9 and 0.75: the round that was ten times slower says the same


def test_works_take_turns_and_every_round_is_kept():
    order = []
    took = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == list("ab" * 4)
    assert took.keys() == {"a", "b"} and all(len(times) == 3 and min(times) >= 0 for times in took.values())


def test_long_tailed_data_falls_from_the_largest_to_the_smallest_class_by_the_ratio():
    y = torch.arange(10).repeat(500)
    x = torch.arange(len(y), dtype=torch.float32).reshape(-1, 1, 1, 1)
    thin_x, thin_y = long_tailed(x, y, 50, torch.Generator().manual_seed(0))
    counts = thin_y.bincount().tolist()
    assert counts[0] == 500 and counts[-1] == 10 and counts == sorted(counts, reverse=True)
    assert torch.equal(y[thin_x.long().flatten()], thin_y)   # each picture kept its label


def test_a_finished_cell_is_not_computed_again_and_another_key_is(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    calls = []

    def compute():
        calls.append(1)
        return {"value": len(calls)}

    assert cells.cell("a", {"seed": 0}, compute) == cells.cell("a", {"seed": 0}, compute) == {"value": 1}
    assert cells.cell("a", {"seed": 1}, compute) == {"value": 2}
    assert not list(tmp_path.rglob("*.part"))


def test_the_code_key_changes_with_code_and_not_with_comments(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    keys = []
    for source in ('"""One."""\nx = 1\n', '"""Two."""\nx = 1   # one\n', "x = 2\n"):
        (tmp_path / "code.py").write_text(source)
        cells.code_key.cache_clear()
        keys.append(cells.code_key("code.py"))
    cells.code_key.cache_clear()
    assert keys[0] == keys[1] != keys[2]
