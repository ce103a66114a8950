"""Command-line options that several commands have, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redoubt.errors import InvalidInput

Name = Annotated[str, typer.Option("--model", "-m", help="Registered model's name.")]
Home = Annotated[Path | None, typer.Option(
    help="Folder for registry, runs and ledger.  [default: $REDOUBT_HOME or .redoubt]", show_default=False)]
Tracking = Annotated[str, typer.Option(
    "--tracking-uri", help="MLflow's address.  [default: $REDOUBT_TRACKING_URI, $MLFLOW_TRACKING_URI or SQLite in the "
                           "home folder]",
    show_default=False)]
PolicyFile = Annotated[Path | None, typer.Option(
    "--policy", envvar="REDOUBT_GATE_POLICY", show_envvar=False, show_default=False,
    help="The gate's policy, a YAML file (docs/promotion.md).  [default: $REDOUBT_GATE_POLICY, else built in]")]
Target = Annotated[list[str], typer.Argument(
    metavar="[NAME] VERSION", help="The model's name, if it is another than --model, and a version's number or alias.")]
OptionalName = Annotated[str, typer.Argument(
    metavar="[NAME]", help="The model's name, if it is another than --model.", show_default=False)]


def policy_text(file: Path | None) -> str:
    """A policy file's content as it travels with a run; empty for the defaults.

    Raises:
        InvalidInput: naming the file and the key that is wrong.
    """
    from redoubt.promotion.policy import load_policy

    return load_policy(file).text() if file else ""


def name_and_version(target: list[str], model_name: str) -> tuple[str, str]:
    """`[NAME] VERSION` as written on the command line.

    Raises:
        InvalidInput: for more than two words.
    """
    if len(target) > 2:
        raise InvalidInput(f"give a model's name and a version, not {' '.join(target)}")
    return (target[0] if len(target) == 2 else model_name), target[-1]


def open_registry(home: Path | None, uri: str, model_name: str):
    """The registry; one that is not there yet is a slip of the keyboard, not a wish for a new one.

    Raises:
        InvalidInput: naming the home folder or the SQLite file that is missing.
    """
    from pipelines.home import check_there, home_folder, sqlite_file, tracking_uri
    from redoubt.registry import Registry

    folder = home_folder(home, make=False)
    chosen = tracking_uri(folder, uri)
    if sqlite_file(chosen) == folder / "mlflow.db" and not (folder / "mlflow.db").is_file():
        raise InvalidInput(f"no registry in {folder} yet: `redoubt run --model {model_name}` makes one, or "
                           "name another with --home")
    return Registry(check_there(chosen), model_name)
