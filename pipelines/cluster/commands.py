"""The `redoubt` commands for a cluster. What they need is imported when they are called."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from redoubt.errors import RedoubtError

PANEL = "On a cluster"
Settings = Annotated[Path | None, typer.Option(
    "--settings", "-s", help="YAML or TOML file with the cluster's settings (docs/cluster.md).  [default: "
                             "$REDOUBT_CLUSTER]", show_default=False, rich_help_panel="Cluster")]
Set = Annotated[list[str] | None, typer.Option(
    "--set", metavar="NAME=VALUE", help="One of the cluster's settings; may be repeated.", rich_help_panel="Cluster",
    show_default=False)]
Endpoint = Annotated[str, typer.Option(help="The Kubeflow Pipelines API.  [default: $REDOUBT_KFP_ENDPOINT]",
                                       show_default=False, rich_help_panel="Cluster")]
Namespace = Annotated[str, typer.Option(help="Profile namespace on a multi-user Kubeflow.", show_default=False,
                                        rich_help_panel="Cluster")]
Image = Annotated[str, typer.Option(help="The steps' image, NAME@sha256:DIGEST.  [default: $REDOUBT_IMAGE]",
                                    show_default=False, rich_help_panel="Cluster")]
AllowTag = Annotated[bool, typer.Option("--allow-tag", help="Take an image by a tag, though it may change.",
                                        rich_help_panel="Cluster")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the address of its page.")]


def add_to(app: typer.Typer, training: dict) -> None:
    """Add the commands to the application.

    Args:
        training: the options that say what is trained, shared with `redoubt run`, by their names.
    """
    app.command("compile", rich_help_panel=PANEL)(compile_pipeline)
    app.command(rich_help_panel=PANEL)(follow)
    app.command(rich_help_panel=PANEL)(cancel)


def compile_pipeline(
    out: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("build/pipeline.yaml"),
    manifests: Annotated[bool, typer.Option(
        "--manifests", help="Write Pipeline and PipelineVersion objects, for a server that keeps pipelines in "
                            "Kubernetes, instead of the IR YAML.")] = False,
    upload: Annotated[bool, typer.Option(
        "--upload", help="Upload it, unless that version is there, and print the ids that serving pins.")] = False,
    settings: Settings = None, given: Set = None, endpoint: Endpoint = "", namespace: Namespace = "",
    image: Image = "", allow_tag: AllowTag = False,
) -> None:
    """Compile the pipeline for a cluster."""
    from pipelines.cluster import package, submit
    from pipelines.cluster.settings import load

    chosen = load(settings, given=tuple(given or ()), endpoint=endpoint, namespace=namespace, image=image,
                  allow_tag=allow_tag or None)
    made = package.write(chosen, out, manifests=manifests)
    typer.echo(f"written to {out}: version {made.version}, steps run in {made.image}")
    if "@sha256:" not in made.image:
        typer.secho("note: a tag can come to mean another image, and kfp's cache goes by its name: "
                    "give --image NAME@sha256:DIGEST", fg=typer.colors.YELLOW, err=True)
    if upload:
        from pipelines.cluster.connect import pipelines_api

        version = submit.ensure_version(pipelines_api(chosen), chosen, made)
        typer.echo(f"{'uploaded' if version.uploaded else 'already there'}: let serving start it with\n"
                   f"REDOUBT_KFP_PIPELINE={version.pipeline}\nREDOUBT_KFP_VERSION={version.version}")


def submit_parameters(
    parameters, *, settings: Path | None, given: list[str] | None, wait: bool, pipeline=None,
    values: dict | None = None, **flags,
) -> int:
    """Submit a run of the pipeline and follow it. Returns the exit code."""
    from pipelines.cluster import package, submit
    from pipelines.cluster.connect import pipelines_api
    from pipelines.cluster.settings import load

    chosen = load(settings, given=tuple(given or ()), **flags)
    api = pipelines_api(chosen)
    made = package.package(chosen, pipeline)
    version = submit.ensure_version(api, chosen, made)
    say(f"version {version.name} {'uploaded' if version.uploaded else 'found'}")
    asked = values if values is not None else {**parameters.to_json(), "tracking_uri": chosen.tracking_uri}
    run, new = submit.start(api, chosen, version, asked)
    say(f"run {run.name} {'started' if new else 'is under way already'}: {api.page(run.id)}")
    return _follow(api, chosen, run.id) if wait else 0


def follow(run: RunId, settings: Settings = None, given: Set = None, endpoint: Endpoint = "",
           namespace: Namespace = "") -> None:
    """Follow a run to its end. Exit code 0 if it succeeded, 1 if it failed or was canceled."""
    from pipelines.cluster import submit
    from pipelines.cluster.connect import pipelines_api
    from pipelines.cluster.settings import load

    chosen = load(settings, given=tuple(given or ()), endpoint=endpoint, namespace=namespace)
    api = pipelines_api(chosen)
    run_id = submit.find(api, run)
    say(api.page(run_id))
    raise typer.Exit(_follow(api, chosen, run_id))


def cancel(run: RunId, settings: Settings = None, given: Set = None, endpoint: Endpoint = "",
           namespace: Namespace = "") -> None:
    """End a run. What its finished steps made stays, and a later run finds it in the cache."""
    from pipelines.cluster import submit
    from pipelines.cluster.connect import pipelines_api
    from pipelines.cluster.settings import load

    api = pipelines_api(load(settings, given=tuple(given or ()), endpoint=endpoint, namespace=namespace))
    ended = submit.cancel(api, submit.find(api, run))
    say(f"run {ended.id}: {ended.state.lower()}")


def _follow(api, settings, run_id: str) -> int:
    from pipelines.cluster.connect import quietly
    from pipelines.cluster.submit import Follower

    follower = Follower(api=api, settings=settings, say=say, kubernetes=quietly(settings.namespace or "kubeflow"))
    try:
        return follower.to_the_end(run_id)
    except KeyboardInterrupt:
        raise RedoubtError(f"not followed any more; the run goes on: `redoubt follow {run_id}` takes it up again, "
                           f"`redoubt cancel {run_id}` ends it") from None


def say(line: str) -> None:
    """One line with the time before it."""
    typer.echo(f"{time.strftime('%H:%M:%S')} {line}")
