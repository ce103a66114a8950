"""The command: help for everything, one clear line and exit code 2 for a user's mistake."""

import os
import subprocess
import sys

import pytest

COMMANDS = ["run", "drill", "serve", "attack", "models", "promote", "rollback", "report", "compile", "submit"]


def redoubt(*arguments, home=None):
    return subprocess.run([sys.executable, "-m", "pipelines.cli", *arguments], capture_output=True, text=True,
                          timeout=120, env=os.environ | ({"REDOUBT_HOME": str(home)} if home else {}))


def test_help_names_every_command():
    done = redoubt("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("arguments, message", [
    (["run", "--dataset", "imagenet"], "unknown dataset 'imagenet'"),
    (["run", "--epsilon", "8"], "write 8/255 rather than 8"),
    (["run", "--epsilon", "1/0"], "not a number"),
    (["run", "--architecture", "vgg"], "unknown architecture"),
    (["drill", "--attack", "magic"], "unknown attack 'magic'"),
    (["drill", "--epsilon", "0"], "above 0"),
    (["attack", "--epsilon", "-1"], "above 0"),
    (["models", "show", "3"], "has no version 3: there is none"),
    (["promote", "3"], "has no version 3"),
    (["rollback"], "no previous_champion"),
    (["submit"], "REDOUBT_KFP_ENDPOINT"),
], ids=" ".join)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.delenv("REDOUBT_KFP_ENDPOINT", raising=False)
    done = redoubt(*arguments, home=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_nothing_served_is_said(tmp_path):
    done = redoubt("attack", "--url", "http://127.0.0.1:9", home=tmp_path)
    assert done.returncode == 1
    assert "no model 'redoubt' is ready at http://127.0.0.1:9" in done.stderr


def test_an_empty_registry_is_no_error(tmp_path):
    done = redoubt("models", "list", home=tmp_path)
    assert done.returncode == 0
    assert "`redoubt run` makes the first" in done.stdout
