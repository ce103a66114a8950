"""The policy file: what is left out has its default, what is wrong is named, and its text travels with a run."""

from dataclasses import fields
from pathlib import Path

import pytest

from redoubt.errors import InvalidInput
from redoubt.promotion.policy import Policy, load_policy, read_policy

DOCS = Path(__file__).parents[2] / "docs" / "promotion.md"


def test_what_is_left_out_has_its_default():
    assert read_policy("") == read_policy("{}") == load_policy(None) == Policy()
    policy = read_policy("promotion: ask\nclean_allowance:\n  Linf: [[0, 0.02], [8/255, 0.05], [0.1, 0.09]]\n")
    assert policy.promotion == "ask"
    assert policy.level == Policy().level
    assert policy.allowed("Linf", 8 / 255) == pytest.approx(0.05)
    assert policy.allowed("Linf", 0.5) == pytest.approx(0.09), "level beyond the last point"
    assert policy.clean_allowance["L2"] == Policy().clean_allowance["L2"]


def test_between_two_points_the_allowance_is_a_straight_line():
    policy = read_policy("clean_allowance: {Linf: [[0, 0.02], [0.1, 0.1]]}")
    assert [policy.allowed("Linf", e) for e in (0, 0.05, 0.1)] == pytest.approx([0.02, 0.06, 0.1])


def test_its_text_says_all_of_it():
    policy = Policy(promotion="ask", level=0.01, clean_allowance={"Linf": [[0, 0.5]]})
    assert read_policy(policy.text()) == policy
    assert "\n" not in policy.text()


@pytest.mark.parametrize("text, message", [
    ("levle: 0.05", "unknown key levle: keys are promotion, level"),
    ("level: 0", "level must be a number above 0 and at most 0.5, not 0"),
    ("level: 5", "level must be a number above 0"),
    ("level: yes", "level must be a number"),
    ("level: .nan", "level must be a number"),
    ("level: '0.05'", "level must be a number"),
    ("worse_level: -1", "worse_level must be"),
    ("promotion: maybe", "promotion must be automatic or ask, not 'maybe'"),
    ("fpr_slack: 0.5", "fpr_slack must be a number between 1 and 100"),
    ("contained_allowance: 2", "contained_allowance must be a number between 0 and 1"),
    ("bootstrap_accuracy: 1", "bootstrap_accuracy must be a number at least 0 and below 1"),
    ("sanity: 'off'", "sanity must be present or required"),
    ("clean_allowance: 0.1", "clean_allowance must give points for L2 or Linf"),
    ("clean_allowance: {L7: [[0, 0.1]]}", "clean_allowance must give points for L2 or Linf"),
    ("clean_allowance: {Linf: 0.1}", "clean_allowance.Linf must be a list of points"),
    ("clean_allowance: {Linf: []}", "clean_allowance.Linf must be a list of points"),
    ("clean_allowance: {Linf: [[0.1, 0.1]]}", "clean_allowance.Linf must begin at epsilon 0, not 0.1"),
    ("clean_allowance: {Linf: [[0, 0.1], [0.1, 0.05]]}", "clean_allowance.Linf must rise"),
    ("clean_allowance: {Linf: [[0, 0.1], [0, 0.2]]}", "clean_allowance.Linf must rise"),
    ("clean_allowance: {Linf: [[0, 0.1], [8, 0.2]]}", "clean_allowance.Linf: "),
    ("clean_allowance: {Linf: [[0, 10]]}", "clean_allowance.Linf at 0 must be a number between 0 and 1"),
    ("level: 0.05\nlevel: 0.5", "key level stands there twice (line 2)"),
    ("- level", "it must hold lines `key: value`"),
    ("level: [", "it is not YAML"),
    ("!!python/object/apply:os.system [true]", "it is not YAML"),
], ids=lambda text: text[:40])
def test_what_is_wrong_is_named_with_what_would_be_right(text, message, tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        load_policy(file)
    assert str(caught.value).startswith(f"policy {file}: ")
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InvalidInput, match=r"nowhere\.yaml cannot be read: No such file"):
        load_policy(tmp_path / "nowhere.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_policy(tmp_path / "bytes.yaml")


def test_the_docs_explain_every_key_with_its_default():
    text = DOCS.read_text()
    for key in fields(Policy):
        default = getattr(Policy(), key.name)
        shown = default if not isinstance(default, dict) else "see below"
        assert f"| `{key.name}` | `{shown}` |" in text or f"| `{key.name}` | {shown} |" in text, key.name


def test_the_example_in_the_docs_is_the_default():
    example = DOCS.read_text().split("```yaml\n")[1].split("```")[0]
    assert read_policy(example) == Policy()
