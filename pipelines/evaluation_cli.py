"""Commands that look at versions: evaluate, report, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.options import Home, Name, Tracking, open_registry

Version = Annotated[str, typer.Argument(metavar="VERSION", help="A version's number.")]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to the command line."""
    for command in (evaluate, report, compare):
        app.command()(command)


def evaluate(
    version: Version,
    suite: Annotated[str, typer.Option(help="quick (FGSM, PGD-20), standard (and AutoAttack) or full.")] = "standard",
    n: Annotated[int, typer.Option("-n", "--images", min=0, help="Test pictures to use; 0 uses all.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Fixes images and random starts.")] = 0,
    data_dir: Annotated[str, typer.Option(help="Where the dataset lies now, if it has moved.")] = "",
    model_name: Name = "redoubt",
    home: Home = None,
    uri: Tracking = "",
) -> None:
    """Evaluate a version with an attack suite and sanity checks; the report is kept with the version.

    Killed or stopped, the same command goes on where it was.
    """
    from pipelines.evaluation import evaluate_version
    from pipelines.home import home_folder

    page = evaluate_version(open_registry(home, uri, model_name), version, suite, home_folder(home), limit=n, seed=seed,
                            data_dir=data_dir)
    typer.echo(f"written to {page}, and kept with version {version}")


def report(
    version: Version,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write it.  [default: report-VERSION.html]",
                                             show_default=False)] = None,
    suite: Annotated[str, typer.Option(help="Which suite's.  [default: the strongest that was run]",
                                       show_default=False)] = "",
    model_name: Name = "redoubt",
    home: Home = None,
    uri: Tracking = "",
) -> None:
    """Write a version's robustness report: one self-contained HTML page, and the same facts as JSON beside it."""
    from pipelines.evaluation import write_report

    page, facts = write_report(open_registry(home, uri, model_name), version, out or Path(f"report-{version}.html"),
                               suite)
    typer.echo(f"written to {page} and {facts.name}")


def compare(
    first: Annotated[str, typer.Argument(metavar="V1", help="A version's number.")],
    second: Annotated[str, typer.Argument(metavar="V2", help="Another's: differences are V2 less V1.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write the page.  [default: "
                                             "compare-V1-V2.html]", show_default=False)] = None,
    model_name: Name = "redoubt",
    home: Home = None,
    uri: Tracking = "",
) -> None:
    """Put two versions side by side: a table here, the same with plots as one HTML page."""
    from pipelines.evaluation import compare_versions

    page = compare_versions(open_registry(home, uri, model_name), (first, second),
                            out or Path(f"compare-{first}-{second}.html"))
    typer.echo(f"written to {page}")
