"""The `redoubt` commands for a cluster. What they need is imported when they are called."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_type_hints

import typer

from redoubt.errors import InvalidInput, RedoubtError

PANEL = "On a cluster"
ON_THIS_MACHINE = ("home", "uri")   # options of `redoubt run` that mean nothing on another one
DEFAULTS = {"dataset": "fashion-mnist"}
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
Uri = Annotated[str, typer.Option("--tracking-uri", help="MLflow's address as pods see it.  [default: the settings', "
                                                         "http://mlflow:5000]", show_default=False,
                                  rich_help_panel="Cluster")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or the address of its page.")]


def add_to(app: typer.Typer, run: Callable) -> None:
    """Add the commands to the application.

    Args:
        run: the command that trains on this machine; those that train on a cluster take its options.
    """
    for name, command in (("compile", compile_pipeline), ("submit", _training(submit, run)), ("follow", follow),
                          ("cancel", cancel), ("schedule", _training(schedule, run)),
                          ("sweep", _training(sweep, run))):
        app.command(name, rich_help_panel=PANEL)(command)


def _training(command: Callable, run: Callable) -> Callable:
    """`command`, whose first argument is what to train, with the options of `run` that say so."""
    hints = get_type_hints(run, include_extras=True) | get_type_hints(command, include_extras=True)
    taken = [one for one in inspect.signature(run).parameters.values() if one.name not in ON_THIS_MACHINE]
    own = list(inspect.signature(command).parameters.values())[1:]
    names = {one.name for one in taken}

    @functools.wraps(command)
    def call(**given):
        return command({name: given.pop(name) for name in names}, **given)

    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[one.name],
                              default=DEFAULTS.get(one.name, one.default)) for one in (*taken, *own)]
    call.__signature__ = inspect.Signature(parameters)
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    return call


def _parameters(training: dict, tracking_uri: str):
    """What is asked for, checked."""
    from pipelines.options import policy_text
    from pipelines.parameters import RunParameters

    if training.get("start") and not training["start"].startswith("models:/"):
        raise InvalidInput(f"--start {training['start']}: a pod does not see this machine's folders; give "
                           "models:/NAME/VERSION")
    return RunParameters(**training | {"policy": policy_text(training["policy"])}, tracking_uri=tracking_uri)


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


def submit(
    training: dict, settings: Settings = None, given: Set = None, endpoint: Endpoint = "", namespace: Namespace = "",
    image: Image = "", allow_tag: AllowTag = False, uri: Uri = "",
    wait: Annotated[bool, typer.Option(help="Follow the run to its end; the exit code is then its result.")] = True,
) -> None:
    """Submit a run of the pipeline to a cluster and follow it to its end.

    Its name follows from what it is asked to do: submitted again while it runs, it is met again, and afterwards what
    has not changed comes from the cache. Exit code 0 when the gate passed the version, 3 when it refused it and the
    champion stays, 1 if a step failed or the run was canceled, 2 for a mistake.
    """
    from pipelines.cluster import submit as runs

    chosen, asked, api, version = _ready(training, settings, given, endpoint=endpoint, namespace=namespace,
                                         image=image, allow_tag=allow_tag or None, tracking_uri=uri)
    run, new = runs.start(api, chosen, version, asked)
    say(f"run {run.name} {'started' if new else 'is under way already'}: {api.page(run.id)}")
    raise typer.Exit(_follow(api, chosen, run.id) if wait else 0)


def schedule(
    training: dict, settings: Settings = None, given: Set = None, endpoint: Endpoint = "", namespace: Namespace = "",
    image: Image = "", allow_tag: AllowTag = False, uri: Uri = "",
    cron: Annotated[str, typer.Option(help="Five fields, minute first, such as '0 3 * * 1'; in UTC.")] = "",
    every: Annotated[str, typer.Option(help="An interval such as 12h or 7d.")] = "",
) -> None:
    """Make a run of the pipeline recur. The same run on another schedule takes the place of the last."""
    from pipelines.cluster import schedule as recurring

    when = recurring.trigger(cron, every)
    chosen, asked, api, version = _ready(training, settings, given, endpoint=endpoint, namespace=namespace,
                                         image=image, allow_tag=allow_tag or None, tracking_uri=uri)
    made, new = recurring.make(api, chosen, version, asked, when)
    say(f"{made['display_name']} {'recurs from now on' if new else 'recurs already'}: {made['recurring_run_id']}")


def sweep(
    training: dict, settings: Settings = None, given: Set = None, endpoint: Endpoint = "", namespace: Namespace = "",
    image: Image = "", allow_tag: AllowTag = False,
    epsilons: Annotated[str, typer.Option(help="The epsilons, as 2/255,4/255,8/255.")] = "0.05,0.1,0.2",
    local: Annotated[bool, typer.Option("--local", help="Run it on this machine, two models at a time.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where --local writes the page.")] = Path("sweep.html"),
    wait: Annotated[bool, typer.Option(help="Follow the run to its end; the exit code is then its result.")] = True,
) -> None:
    """Train one model for each of several epsilons, in parallel, and put them side by side on one page.

    Nothing is registered or promoted: it shows what each epsilon costs on clean pictures and buys under attack. Exit
    code 0 if it succeeded, 1 if it failed or was canceled, 2 for a mistake.
    """
    from pipelines import sweep as sweeping

    training.pop("epsilon")
    found = sweeping.read_epsilons(epsilons, training["norm"])
    asked = sweeping.arguments(_parameters(training, "http://mlflow:5000"), found)
    if local:
        raise typer.Exit(_sweep_here(asked, out))
    from pipelines.cluster import package, submit
    from pipelines.cluster.connect import check_endpoint, pipelines_api
    from pipelines.cluster.place import placing
    from pipelines.cluster.settings import load

    chosen = load(settings, given=tuple(given or ()), endpoint=endpoint, namespace=namespace, image=image,
                  allow_tag=allow_tag or None, pipeline=sweeping.NAME, experiment=sweeping.NAME)
    check_endpoint(chosen)
    submit.check_image(chosen)
    api = pipelines_api(chosen)
    _preflight(chosen)
    made = package.package(chosen, lambda settings: sweeping.define(placing(settings)))
    run, new = submit.start(api, chosen, submit.ensure_version(api, chosen, made), asked | _together(chosen))
    say(f"run {run.name} {'started' if new else 'is under way already'}: {api.page(run.id)}")
    raise typer.Exit(_follow(api, chosen, run.id) if wait else 0)


def _sweep_here(asked: dict, out: Path) -> int:
    import shutil

    from pipelines import local
    from pipelines.home import home_folder, new_folder

    folder = new_folder(home_folder() / "runs", "sweep")
    process = local.start(asked, folder, "pipelines.sweep")
    result = local.follow(process, folder,
                          lambda row: say(f"{row['step']}: {row['state']}") if "state" in row else None)
    if result.status == "failed":
        raise RedoubtError(f"{result.reason} (log: {folder / 'run.log'})")
    shutil.copy(folder / "sweep.html", out)
    say(f"written to {out}")
    return 0


def _ready(training: dict, settings: Path | None, given: list[str] | None, **flags):
    """What a run needs: settings, checked parameters, the server, and the pipeline's version on it."""
    from pipelines.cluster import package, submit
    from pipelines.cluster.connect import check_endpoint, pipelines_api
    from pipelines.cluster.settings import load

    chosen = load(settings, given=tuple(given or ()), **flags)
    asked = _parameters(training, chosen.tracking_uri).to_json() | _together(chosen)
    check_endpoint(chosen)
    submit.check_image(chosen)
    api = pipelines_api(chosen)
    _preflight(chosen)
    version = submit.ensure_version(api, chosen, package.package(chosen))
    say(f"version {version.name} {'uploaded' if version.uploaded else 'found'}")
    return chosen, asked, api, version


def _preflight(settings) -> None:
    from pipelines.cluster import preflight

    if any(preflight.named(settings)):   # only then is the client for Kubernetes worth its import
        from pipelines.cluster.connect import quietly

        kubernetes = quietly(settings.namespace or "kubeflow")
        if kubernetes:
            preflight.check(kubernetes, settings)


def _together(settings) -> dict:
    """With several GPUs in a pod, the train step runs under torchrun, a process for each."""
    return {"processes": 0} if settings.gpus_per_node > 1 else {}


def follow(run: RunId, settings: Settings = None, given: Set = None, endpoint: Endpoint = "",
           namespace: Namespace = "") -> None:
    """Follow a run to its end. Exit code 0 if it succeeded, 3 if the gate refused, 1 if it failed or was canceled."""
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
    from pipelines.cluster import submit
    from pipelines.cluster.connect import quietly

    follower = submit.Follower(api=api, settings=settings, say=say, poll=submit.POLL_SECONDS,
                               kubernetes=quietly(settings.namespace or "kubeflow"))
    try:
        return follower.to_the_end(run_id)
    except KeyboardInterrupt:
        raise RedoubtError(f"not followed any more; the run goes on: `redoubt follow {run_id}` takes it up again, "
                           f"`redoubt cancel {run_id}` ends it") from None


def say(line: str) -> None:
    """One line with the time before it."""
    typer.echo(f"{time.strftime('%H:%M:%S')} {line}")
