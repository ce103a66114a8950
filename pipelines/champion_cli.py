"""The commands that look at versions and change the champion. What they do lives in `pipelines.champion`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import (
    Home,
    Name,
    OptionalName,
    PolicyFile,
    Target,
    Tracking,
    name_and_version,
    open_registry,
)

models_app = typer.Typer(no_args_is_help=True, help="Look at the versions in the registry.")


def add_commands(app: typer.Typer) -> None:
    """Add everything in this file to the command `app`."""
    app.add_typer(models_app, name="models")
    for command in (promote, rollback, deescalate, keygen):
        app.command()(command)


@models_app.command("list")
def models_list(model_name: Name = "redoubt", home: Home = None, uri: Tracking = "") -> None:
    """All versions, newest first, with aliases, threat models, accuracy, and how each stands with the gate."""
    from pipelines.show import versions_table

    versions_table(open_registry(home, uri, model_name))


@models_app.command("show")
def models_show(target: Target, model_name: Name = "redoubt", home: Home = None, uri: Tracking = "") -> None:
    """One version: its facts and the gate's decision, rule by rule."""
    from pipelines.show import version_page

    name, version = name_and_version(target, model_name)
    version_page(open_registry(home, uri, name).version(version))


@models_app.command("history")
def models_history(
    name: OptionalName = "", model_name: Name = "redoubt", home: Home = None, uri: Tracking = "",
) -> None:
    """Every change of champion: when, from which version to which, how, by whom and why."""
    from pipelines.champion import history_table

    history_table(open_registry(home, uri, name or model_name))


def keygen(
    file: Annotated[Path, typer.Argument(help="Where the private key goes; the public one beside it.")],
) -> None:
    """Make keys that sign versions: FILE (private, for REDOUBT_SIGNING_KEY) and FILE.pub (for REDOUBT_TRUSTED_KEYS)."""
    from redoubt.signing import new_keys

    typer.echo(f"private key in {file}: keep it secret. Public key in {new_keys(file)}")


def promote(
    target: Target,
    override: Annotated[str, typer.Option(help="Promote although the gate refuses; say why. It is recorded, with you "
                                               "as the one who did it.")] = "",
    policy: PolicyFile = None,
    again: Annotated[bool, typer.Option("--again", help="Measure again, even if the gate's record still holds.")] =
    False,
    model_name: Name = "redoubt",
    home: Home = None,
    uri: Tracking = "",
) -> None:
    """Make a version the champion, if the gate passes it.

    The gate's record is taken when it was made against the present champion under the same policy; otherwise both
    are measured again, here, on the data that they were trained with. Exit code 3 when the gate refuses.
    """
    from pipelines.champion import promote_version
    from redoubt.promotion.policy import load_policy

    name, version = name_and_version(target, model_name)
    promote_version(open_registry(home, uri, name), version, override.strip(), load_policy(policy), again=again)


def rollback(
    name: OptionalName = "",
    why: Annotated[str, typer.Option(help="The reason, for the history.")] = "",
    model_name: Name = "redoubt",
    home: Home = None,
    uri: Tracking = "",
) -> None:
    """Put the previous champion back into service; a second time the one before it.

    It never goes to a version that was rolled back from, or that neither the gate nor a person ever passed.
    """
    from pipelines.champion import roll_back

    roll_back(open_registry(home, uri, name or model_name), why)


def deescalate(
    name: OptionalName = "",
    epsilon: Annotated[str, typer.Option(help="What to cover from now on.  [default: half of what the champion "
                                              "covers]", show_default=False)] = "",
    url: Annotated[str, typer.Option(help="The server that watched the traffic.")] = "http://127.0.0.1:8080",
    api_key: Annotated[str, typer.Option(envvar="REDOUBT_API_KEY", help="If the server asks for one.",
                                         show_default=False)] = "",
    days: Annotated[float, typer.Option(min=0, help="How long no attack must have been seen.")] = 7.0,
    inputs: Annotated[int, typer.Option(min=0, help="How many distinct inputs the server must have watched.")] = 1000,
    yes: Annotated[bool, typer.Option("--yes", help="Start the run here; otherwise it is proposed only.")] = False,
    policy: PolicyFile = None,
    model_name: Name = "redoubt",
    home: Home = None,
    uri: Tracking = "",
) -> None:
    """After a long all-clear, propose a run with a lower epsilon: robustness costs clean accuracy.

    The gate lets such a version pass only when it is better on clean pictures and no worse under what it still covers.
    """
    from pipelines.deescalate import Quiet, propose

    quiet = Quiet(url=url, api_key=api_key, days=days, inputs=inputs)
    raise typer.Exit(propose(open_registry(home, uri, name or model_name), quiet, epsilon=epsilon, start=yes,
                             policy=policy, home=home))
