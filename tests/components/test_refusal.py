"""The step that tells a refused run from another."""

from components.refusal.step import run


def test_it_says_in_one_line_what_was_refused_and_why(capsys):
    line = run(model_name="m", version=4, reason="Linf 0.1: 3 better, 9 worse")
    assert line == "the gate refused version 4 of m, its champion stays: Linf 0.1: 3 better, 9 worse"
    assert capsys.readouterr().out == line + "\n"
