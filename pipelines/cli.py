"""The `redoubt` command. Each subcommand imports its room when it is called, so that `--help` stays quick."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines import champion_cli, evaluation_cli
from pipelines.cluster.commands import add_to as cluster_commands
from pipelines.options import Home, Name, PolicyFile, Tracking, policy_text
from redoubt.errors import RedoubtError

app = typer.Typer(
    name="redoubt", no_args_is_help=True, add_completion=False, rich_markup_mode="markdown",
    help="Keep an image classifier trustworthy while it is under attack.\n\n"
         "Start with `redoubt drill`: a live model is attacked, notices, retrains itself and recovers.",
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)

Dataset = Annotated[str, typer.Option(
    help="digits, photo-patches, mnist, fashion-mnist, cifar10, cifar100, folder:PATH or npz:PATH.",
    rich_help_panel="Data")]
DataDir = Annotated[str, typer.Option(help="Where a local copy of the dataset lies, and where a download goes.",
                                      rich_help_panel="Data")]
Epsilon = Annotated[str, typer.Option(help="Perturbation bound in the [0, 1] pixel range: 0.1 or 8/255.")]
Norm = Annotated[str, typer.Option(help="Linf or L2.")]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Fixes initialisation, order and attacks.")]
OBJECTIVE_HELP = "standard, blend, pgd, mixed, half, trades or fast (docs/training.md)."
ARCHITECTURE_HELP = ("compact-cnn, strided-cnn, preactresnet-18, wideresnet-28-10, or torchvision:NAME such as "
                     "torchvision:resnet18.")
VersionNumber = Annotated[str, typer.Argument(metavar="VERSION", help="A version's number.")]


def _parameters(home: Path | None, uri: str, **values):
    from pipelines.home import home_folder, local_dataset, tracking_uri
    from pipelines.parameters import RunParameters
    from redoubt.threat import parse_epsilon

    folder = home_folder(home)
    values["dataset"] = local_dataset(values["dataset"])
    values["data_dir"] = str(Path(values["data_dir"]).expanduser().absolute()) if values["data_dir"] else ""
    values["epsilon"] = parse_epsilon(values["epsilon"], norm=values["norm"])
    return folder, RunParameters(tracking_uri=tracking_uri(folder, uri), **values)


@app.command()
def run(
    dataset: Dataset = "digits",
    architecture: Annotated[str, typer.Option(help=ARCHITECTURE_HELP)] = "compact-cnn",
    objective: Annotated[str, typer.Option(help=OBJECTIVE_HELP)] = "blend",
    epsilon: Epsilon = "0.1",
    norm: Norm = "Linf",
    epochs: Annotated[int, typer.Option(help="0 takes the default for objective, architecture and data.")] = 0,
    steps: Annotated[int, typer.Option(help="PGD steps of the attack in training.")] = 5,
    lam: Annotated[float, typer.Option(
        "--lambda", help="Weight of the adversarial term of `mixed` and `trades`.")] = 1.0,
    plugins: Annotated[str, typer.Option(
        help='Additions as JSON: {"label_smoothing": 0.1, "patience": 5} (docs/training.md).')] = "{}",
    seed: Seed = 0,
    start: Annotated[str, typer.Option(
        help="Version whose weights training begins with: a bundle's folder, models:/NAME/VERSION or "
             "models:/NAME@ALIAS; empty begins with random ones.")] = "",
    processes: Annotated[int, typer.Option(
        min=0, help="Processes that train together, one for each GPU; 0 takes as many as there are GPUs.")] = 1,
    split_seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Fixes how the data is divided.",
                                            rich_help_panel="Data")] = 0,
    model_name: Name = "redoubt",
    data_dir: DataDir = "",
    image_size: Annotated[int, typer.Option(help="Resize a folder's pictures to this side; 0 leaves them.",
                                            rich_help_panel="Data")] = 0,
    limit: Annotated[int, typer.Option(help="Use only so many training pictures; 0 uses all.",
                                       rich_help_panel="Data")] = 0,
    test_limit: Annotated[int, typer.Option(help="Test pictures in the report; 0 uses all.",
                                            rich_help_panel="Data")] = 2000,
    suite: Annotated[str, typer.Option(help="Attacks of the report: quick (FGSM, PGD-20), standard (and AutoAttack: "
                                            "minutes) or full.")] = "quick",
    fpr: Annotated[float, typer.Option(help="The detector's false-positive rate.")] = 0.01,
    policy: PolicyFile = None,
    home: Home = None,
    uri: Tracking = "",
) -> None:
    """Train, evaluate, fit the detector, register and judge a model: the pipeline, on this machine.

    It runs through Kubeflow Pipelines' local runner, with the components that a cluster would run. Exit code 0 when
    the gate passed the version, 3 when it refused it, 1 when a step failed.
    """
    from pipelines.preflight import check
    from pipelines.show import follow_run

    if key := os.environ.get("REDOUBT_SIGNING_KEY"):
        from redoubt.signing import private_key

        private_key(key)   # the last step but one signs: whether it can is better known before the first
    folder, parameters = _parameters(
        home, uri, dataset=dataset, architecture=architecture, objective=objective, epsilon=epsilon, norm=norm,
        epochs=epochs, steps=steps, lam=lam, plugins=plugins, seed=seed, start=start, processes=processes,
        split_seed=split_seed, model_name=model_name, data_dir=data_dir, image_size=image_size, limit=limit,
        test_limit=test_limit, suite=suite, fpr=fpr,
        policy=policy_text(policy),
    )
    check(parameters)
    raise typer.Exit(follow_run(parameters, folder))


@app.command()
def drill(
    dataset: Dataset = "digits",
    attack: Annotated[str, typer.Option(help="fgsm, pgd or momentum, white-box.")] = "pgd",
    epsilon: Annotated[str, typer.Option(help="The attacker's bound, known to the drill alone: 0.1 or 8/255.  "
                                              "[default: 0.2 for digits, else 0.1]", show_default=False)] = "",
    norm: Norm = "Linf",
    seed: Seed = 0,
    oracle: Annotated[bool, typer.Option(help="Afterwards train a model with the true epsilon, to compare.")] = True,
    requests: Annotated[int, typer.Option(help="Requests of the same attacker after the swap.")] = 5000,
    hold: Annotated[bool, typer.Option("--hold", help="Keep the live page open afterwards, until Ctrl-C.")] = False,
    data_dir: DataDir = "",
    limit: Annotated[int, typer.Option(help="Use only so many training pictures; 0 uses all.",
                                       rich_help_panel="Data")] = 0,
    home: Home = None,
) -> None:
    """Attack a live model and watch it recover: alarm, estimate, retraining, gate, swap.

    Exit code 0 only if the model recovered; otherwise the failing stage is named with its reason.
    """
    from pipelines.drill.options import DrillOptions
    from pipelines.drill.show import run_drill
    from pipelines.home import home_folder, local_dataset
    from redoubt.threat import parse_epsilon

    options = DrillOptions(
        dataset=local_dataset(dataset), attack=attack, norm=norm,
        epsilon=parse_epsilon(epsilon, norm=norm) if epsilon else 0.0,
        seed=seed, oracle=oracle, requests=requests, data_dir=data_dir, limit=limit,
    )
    raise typer.Exit(run_drill(options, home_folder(home), hold=hold))


@app.command()
def serve(
    model_name: Name = "redoubt",
    models: Annotated[str, typer.Option(
        help='Several models in one server instead of one: names such as mnist,traffic, or a JSON object from names to '
             'the settings that differ (docs/serving.md).  [default: $REDOUBT_MODELS]', show_default=False)] = "",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8080,
    home: Home = None,
    uri: Tracking = "",
) -> None:
    """Serve the champion, watch its inputs and answer campaigns with retraining runs.

    Further settings come from REDOUBT_* variables: see docs/serving.md, or `python -m serving --help`.
    """
    import os

    from pipelines.home import home_folder, tracking_uri

    folder = home_folder(home)
    os.environ |= {"REDOUBT_HOME": str(folder), "REDOUBT_TRACKING_URI": tracking_uri(folder, uri),
                   "REDOUBT_MODEL_NAME": model_name, "REDOUBT_HOST": host, "REDOUBT_PORT": str(port)}
    if models:
        names = {name.strip(): {} for name in models.split(",")}
        os.environ["REDOUBT_MODELS"] = models if models.lstrip().startswith("{") else json.dumps(names)
    os.execv(sys.executable, [sys.executable, "-m", "serving"])   # signals reach the server itself


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def keys(context: typer.Context) -> None:
    """Make, list and revoke API keys of the server: `redoubt keys --help`."""
    import os

    os.execv(sys.executable, [sys.executable, "-m", "serving", "keys", *context.args])


@app.command()
def attack(
    url: Annotated[str, typer.Option(help="The server's address.")] = "http://127.0.0.1:8080",
    attack: Annotated[str, typer.Option(help="fgsm, pgd or momentum; none sends clean pictures.")] = "pgd",
    epsilon: Epsilon = "0.1",
    norm: Norm = "Linf",
    n: Annotated[int, typer.Option("-n", "--requests", min=1, help="How many pictures to send, one a request.")] = 500,
    seed: Seed = 0,
    model_name: Name = "redoubt",
    data_dir: DataDir = "",
    home: Home = None,
    uri: Tracking = "",
) -> None:
    """Send attack traffic at a served model: test pictures, attacked white-box with the champion's own weights."""
    from pipelines.attack import attack_served
    from pipelines.home import home_folder, tracking_uri
    from redoubt.threat import ThreatModel, parse_epsilon

    folder = home_folder(home)
    threat = ThreatModel(norm, parse_epsilon(epsilon, norm=norm))
    raise typer.Exit(attack_served(url, model_name, tracking_uri(folder, uri), attack, threat, n=n, seed=seed,
                                   data_dir=data_dir, scratch=folder))


champion_cli.add_commands(app)


evaluation_cli.add_commands(app)


cluster_commands(app, run)


def main() -> None:
    """Entry point: what Redoubt knows how to explain ends in one line and an exit code, without a traceback."""
    # SIGTERM ends what a command started, as Ctrl-C does: both unwind through the same context managers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except RedoubtError as error:
        typer.secho(f"redoubt: {error}", fg=typer.colors.RED, err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
