"""The command: help for everything, one clear line and exit code 2 for a user's mistake."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pipelines.cli import main
from redoubt.bundle import write_bundle
from redoubt.registry import Registry

COMMANDS = ["run", "drill", "serve", "attack", "models", "promote", "rollback", "deescalate", "evaluate", "report",
            "compare", "compile", "submit"]


def redoubt(*arguments, home=None):
    return subprocess.run([sys.executable, "-m", "pipelines.cli", *arguments], capture_output=True, text=True,
                          timeout=300, env=os.environ | ({"REDOUBT_HOME": str(home)} if home else {}))


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """As `redoubt`, in this process: a start costs seconds, most of them MLflow's."""
    monkeypatch.setenv("REDOUBT_HOME", str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["redoubt", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code or 0, stdout=said.out, stderr=said.err)

    yield run
    signal.signal(signal.SIGTERM, before)


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
    (["attack", "--url", "127.0.0.1:8080"], "must begin with http://"),
    (["run", "--dataset", "npz:/no/such.npz"], "no such file"),
    (["drill", "--dataset", "folder:/no/such"], "no such folder"),
    (["run", "--model", "it's"], "model name"),
    (["run", "--model", "champion"], "is an alias of versions"),
    (["run", "--tracking-uri", "foo://x"], "must begin with one of http://"),
    (["models", "list"], "`redoubt run --model redoubt` makes one"),
    (["rollback", "--home", "/no/such/home"], "no registry in /no/such/home"),
    (["compile", "--image", "x@sha256:12"], "64 hexadecimal digits"),
    (["submit"], "REDOUBT_KFP_ENDPOINT"),
    (["run", "--policy", "/no/such.yaml"], "policy /no/such.yaml cannot be read"),
    (["promote", "a", "2", "3"], "give a model's name and a version, not a 2 3"),
    (["keygen", "/no/such/key"], "cannot be written"),
], ids=" ".join)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments, message, here, monkeypatch):
    monkeypatch.delenv("REDOUBT_KFP_ENDPOINT", raising=False)
    done = here(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", [
    ["run", "--dataset", "imagenet"], ["models", "list"], ["submit"],
], ids=" ".join)
def test_it_is_as_short_from_a_process_of_its_own(arguments, tmp_path, monkeypatch):
    """What libraries say while they load would stand there, too."""
    monkeypatch.delenv("REDOUBT_KFP_ENDPOINT", raising=False)
    done = redoubt(*arguments, home=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("redoubt: ")


@pytest.mark.parametrize("models, said", [
    ("digits,it's", "REDOUBT_MODELS: model name"),
    ('{"digits": {"host": "x"}}', "host"),
    ("{", "write a JSON object"),
])
def test_several_models_are_handed_to_the_server(models, said, tmp_path):
    done = redoubt("serve", "--models", models, "--port", "0", home=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def test_a_key_that_cannot_sign_is_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv("REDOUBT_SIGNING_KEY", "/no/such.key")
    done = redoubt("run", home=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "redoubt: key /no/such.key cannot be read: No such file or directory\n"
    assert not list(tmp_path.iterdir())


def test_nothing_served_is_said(tmp_path):
    done = redoubt("attack", "--url", "http://127.0.0.1:9", home=tmp_path)
    assert done.returncode == 1
    assert "no model 'redoubt' is ready at http://127.0.0.1:9" in done.stderr


def test_a_home_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = redoubt("run", "--home", str(tmp_path / "file"))
    assert done.returncode == 2
    assert "cannot be the home folder" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_corrupt_data_file_is_the_users_mistake(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"not an archive")
    done = redoubt("run", "--dataset", f"npz:{tmp_path / 'bad.npz'}", home=tmp_path)
    assert done.returncode == 2
    assert "bad.npz is no .npz file" in done.stdout.replace("\n", " ")


def test_versions_promotion_and_rollback(tmp_path, digits_model, here):
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", "redoubt")
    bundle = write_bundle(tmp_path / "b", digits_model, classes=list("0123456789"), threats=())
    for _ in range(2):
        registry.register(bundle, metrics={}, parameters={}, tags={"cause": "manual"})
    registry.promote(registry.version(1), override="the first")
    refused = redoubt("promote", "2", home=tmp_path)
    assert refused.returncode == 3
    assert "the gate has not judged it" in refused.stderr
    assert here("promote", "redoubt", "2", "--override", "tried by hand").returncode == 0
    assert registry.champion().number == 2
    assert "tried by hand" in here("models", "show", "2").stdout
    assert here("rollback").returncode == 0
    assert registry.champion().number == 1
    listed = here("models", "list").stdout.splitlines()
    assert ["rolled back" in next(line for line in listed if f"│ {n} " in line) for n in (1, 2)] == [False, True]
    mistyped = here("models", "list", "--model", "redoutb")
    assert (mistyped.returncode, mistyped.stderr) == (
        2, "redoubt: no versions of 'redoutb' yet: there is redoubt (--model)\n")
    why = "a reason that is a good deal longer than what fits into a window of eighty characters, to its very end"
    again = here("rollback", "redoubt")
    assert (again.returncode, "rolled back from: 2" in again.stderr) == (2, True)
    assert "tried by hand" in here("models", "history").stdout
    assert here("promote", "7").returncode == 2
    assert here("promote", "2", "--override", why).returncode == 0
    assert why in here("models", "history").stdout, "in a pipe nothing is cut"


@pytest.mark.parametrize("command", [
    ["models", "list"], ["models", "history"], ["models", "show", "1"], ["compare", "1", "2"], ["report", "1"],
    ["promote", "1"], ["rollback"],
], ids=" ".join)
def test_a_mistyped_registry_is_named_and_not_made(command, tmp_path, here):
    (tmp_path / "mlflow.db").write_bytes(b"")
    file = tmp_path / "mlfow.db"
    done = here(*command, "--tracking-uri", f"sqlite:///{file}")
    assert done.returncode == 2
    assert done.stderr == f"redoubt: no registry at sqlite:///{file}: there is no file {file}\n"
    assert not file.exists()


@pytest.mark.parametrize("arguments, message", [
    (["--tracking-uri", "http://127.0.0.1:9"], "the registry at http://127.0.0.1:9 could not"),
    (["--tracking-uri", "sqlite:////no/such/mlflow.db"], "no registry can be made at sqlite:////no/such/mlflow.db"),
    (["--start", "models:/other/3"], "other has no version 3"),
    (["--start", "models:/other@best"], "best"),
    (["--start", "models:/other"], "write models:/NAME/VERSION"),
    (["--start", "/no/such"], "is no bundle's folder"),
    (["--architecture", "torchvision:resnet19"], "no classification network 'resnet19'"),
], ids=lambda value: value[-1] if isinstance(value, list) else "")
def test_what_a_run_needs_is_looked_at_before_its_first_step(arguments, message, tmp_path, here):
    done = here("run", *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_in_a_pipe_prints_its_epochs_its_accuracy_and_what_comes_next(tmp_path):
    done = redoubt("run", "--objective", "standard", "--epochs", "3", "--test-limit", "50", home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[1].strip() for line in lines if line.startswith("train: epoch")] == [
        "epoch 1", "epoch 2", "epoch 3"]
    assert "gate: running" in lines
    assert any(line.startswith("accuracy: 0.") and "clean" in line for line in lines)
    assert "to serve it: redoubt serve --model redoubt" in lines


def test_reports_go_to_folders_that_are_there(tmp_path, digits_model):
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", "redoubt")
    bundle = write_bundle(tmp_path / "b", digits_model, classes=list("0123456789"), threats=())
    registry.register(bundle, metrics={}, parameters={}, tags={})
    for command in (["report", "1"], ["compare", "1", "1"]):
        done = redoubt(*command, "--out", str(tmp_path / "rep" / "a.html"), home=tmp_path)
        assert done.returncode == 2
        assert f"there is no folder {tmp_path / 'rep'}" in done.stderr
    assert not (tmp_path / "rep").exists()
