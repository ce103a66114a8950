"""The drill's page: it tells the story, survives whatever is missing, and lets nothing through unescaped."""

import copy
import math

import pytest
from PIL import Image

from redoubt.report import drill_picture, drill_report
from redoubt.report.drill import headline


def test_the_page_tells_the_whole_story(tmp_path, drill, read_page):
    page = read_page(drill_report(tmp_path / "made" / "on the way" / "drill.html", drill))
    for words in (
        "recovered", "FGSM at epsilon 0.100 on digits", "61 requests into the attack",
        "measured its strength as 0.104 where 0.100 was true", "38.4 s after the alarm",
        "None of 18,231 requests failed.",
        "What happened when", "attack begins", "alarm line", "Accuracy before and after", "72.4 %", "73.1 %", "0.3 %",
        "How strong the attack was", "0.098", "What was sent", "version 1", "2 cores",
    ):
        assert words in page.text, words
    assert page.images == 8 * 3


def test_colours_follow_the_page_and_not_the_plot(tmp_path, drill):
    text = drill_report(tmp_path / "drill.html", drill).read_text()
    body = text[text.index("<body>"):]
    assert "var(--c1)" in body
    assert "#0072b2" not in body
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("key", ["accuracy", "dataset", "epsilon_true", "events", "examples", "norm", "stages",
                                 "strength", "timeline", "requests_until_alarm", "total_requests", "attack"])
def test_any_part_may_be_missing(tmp_path, drill, read_page, key):
    drill[key] = None
    assert "Redoubt drill" in read_page(drill_report(tmp_path / "drill.html", drill)).text


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("accuracy", {"before": {"clean": 0.9, "replayed": None}, "after": None}),
        ("accuracy", {"before": {}, "after": {}, "oracle": None}),
        ("strength", {"estimate": 0.1, "low": None, "high": None, "matched": None}),
        ("strength", {"estimate": math.nan, "low": math.inf, "high": 0.1, "matched": None}),
        ("timeline", [{"t": 0.0}, {"t": 1.0, "statistic": math.inf, "threshold": None, "flagged_share": math.nan}]),
        ("timeline", [{"t": 0.0, "flagged_share": 0.5, "statistic": 1.0, "threshold": 2.0}]),
        ("timeline", []),
        ("events", [{"t": None, "name": "lost"}, {"t": 500.0, "name": None}]),
        ("events", [{"t": 5.0 + i / 100, "name": f"one of many events {i}"} for i in range(30)]),
        ("examples", {"clean": [], "adversarial": None}),
        ("examples", {"clean": [[[[0.1, 0.2], [0.3, 0.4]]]], "adversarial": []}),
        ("stages", [{"name": "attack"}, {}]),
    ],
)
def test_strange_parts_still_give_a_page_and_a_picture(tmp_path, drill, read_page, part, value):
    drill[part] = value
    read_page(drill_report(tmp_path / "drill.html", drill))
    assert drill_picture(tmp_path / "drill.svg", drill).stat().st_size > 1000


def test_an_empty_result_is_a_failed_drill(tmp_path, read_page):
    page = read_page(drill_report(tmp_path / "drill.html", {}))
    assert "failed" in page.text
    assert "no reason was recorded" in page.text
    drill_picture(tmp_path / "drill.png", {})


def test_a_failure_names_its_stage_and_reason(tmp_path, drill, read_page):
    drill |= {"outcome": "failed", "failure": {"stage": "alarm", "reason": "no alarm after 5,000 requests."},
              "strength": None, "accuracy": None, "retrains": 0, "failed_requests": 3}
    page = read_page(drill_report(tmp_path / "drill.html", drill))
    assert "The drill failed at alarm: no alarm after 5,000 requests." in page.text
    assert "recovered" not in page.text
    assert headline(drill).count(".") == 1


def test_nothing_gets_through_unescaped(tmp_path, drill, read_page):
    evil = '<script>alert("x")</script>\' onload="y" &amp;'
    drill |= {"dataset": evil, "hardware": evil, "attack": evil, "norm": evil}
    drill["stages"][0] |= {"name": evil, "detail": evil, "status": evil}
    drill["events"][0]["name"] = evil
    failed = copy.deepcopy(drill) | {"outcome": "failed", "failure": {"stage": evil, "reason": evil}}
    for name, result in (("a", drill), ("b", failed)):
        path = drill_report(tmp_path / f"{name}.html", result)
        assert "<script" not in path.read_text()
        assert '<script>alert("x")' in read_page(path).text


def test_the_picture_is_900_pixels_wide_in_png_and_svg(tmp_path, drill):
    with Image.open(drill_picture(tmp_path / "deep" / "drill.png", drill)) as picture:
        assert picture.size[0] == 1800   # two for each CSS pixel
    assert drill_picture(tmp_path / "drill.svg", drill).read_text().count("<svg") == 1


def test_the_same_result_gives_the_same_page(tmp_path, drill):
    first, again = (drill_report(tmp_path / name, drill).read_bytes() for name in ("a.html", "b.html"))
    assert first == again
