"""Evaluate a registered version again with another suite, write its report, compare two versions."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table

from components.evaluate import step as evaluate_step
from components.prepare_data import step as prepare_step
from components.register.page import card, datasets, page_title, save_figures, strength_points
from components.register.step import asked_for
from pipelines.console import make_console
from redoubt.bundle import Bundle
from redoubt.errors import InvalidInput, one_of
from redoubt.evaluation.store import forget
from redoubt.evaluation.suites import check_suite
from redoubt.names import REPORT
from redoubt.promotion.page import describe
from redoubt.registry import Registry, Version
from redoubt.report import comparison, robustness_report
from redoubt.report.compare import lines, mismatch
from redoubt.report.facts import SUITES, figures_to_quote, metric_values, outweighs

PLACE = "evaluations"               # below it, in a version's run, one folder a suite
PAGE, STATE = "report.html", "state"
console = make_console()


def evaluate_version(
    registry: Registry, number: str, suite: str, home: Path, *, limit: int, seed: int, data_dir: str = "",
    out: Path | None = None,
) -> Path:
    """Evaluate a version on its own test pictures and keep the report with it; returns where the page lies here.

    A run that was killed goes on from what it had finished: its state lies beside the page until the registry has the
    report.
    """
    check_suite(suite)
    version = registry.version(number)
    out = out or home / PLACE / f"{registry.model_name}-{version.number}-{suite}"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".evaluate-") as scratch:
        bundle = registry.fetch(version, Path(scratch) / "bundle")
        data = training_data(bundle, Path(scratch) / "data", data_dir)
        asked = bundle.manifest["parameters"]
        report = evaluate_step.run(
            data, bundle.folder, out, norm=asked.get("norm", "Linf"), epsilon=asked.get("epsilon", 0.1), limit=limit,
            suite=suite, seed=seed, state=out / STATE, progress=_say,
        )
        write_page(out, bundle, report)
        (out / evaluate_step.EXAMPLES).unlink(missing_ok=True)   # they are in the page
        record(registry, version.number, bundle, report, out)
    forget(out / STATE)
    _summary(report)
    return out / PAGE


def record(registry: Registry, number: int, bundle: Bundle, report: dict, out: Path) -> None:
    """Keep a report with its version: metrics, page, data, and the figures to quote if none there are weightier.

    A report of the same suite over more pictures stays in its place.
    """
    version, suite = registry.version(number), report["suite"]
    found = figures_to_quote(report, asked_for(bundle))
    with tempfile.TemporaryDirectory() as folder:
        more = max(_pictures(registry.artifacts(version, f"{PLACE}/{suite}", Path(folder) / "earlier"), suite),
                   _pictures(bundle.folder, suite))
        if more > report["n"]:
            console.print(f"not kept with version {number}: its report of the suite {suite} is of {more:,} pictures, "
                          f"this one of {report['n']:,}", highlight=False, soft_wrap=True)
            return
        kept = shutil.copytree(out, Path(folder) / suite, ignore=shutil.ignore_patterns(STATE))
        registry.record(version, metrics={f"{suite}/{name}": value for name, value in metric_values(report).items()},
                        tags=found if outweighs(found, version.tags) else None, folder=kept, at=f"{PLACE}/{suite}",
                        datasets=datasets(bundle, report))
    registry.describe(version, describe(registry.version(number)))


def _pictures(folder: Path | None, suite: str) -> int:
    """How many pictures are behind the report in a folder; 0 where there is none of this suite."""
    file = folder / REPORT if folder else None
    report = json.loads(file.read_text()) if file and file.is_file() else {}
    return report.get("n", 0) if report.get("suite", "quick") == suite else 0


def training_data(bundle: Bundle, folder: Path, data_dir: str) -> Path:
    """The data that a version was trained on and is tested on, prepared again and held against its checksum."""
    request = dict(bundle.manifest["data"]["request"])
    if data_dir:
        request["data_dir"] = data_dir
    prepare_step.run(folder, **request, data_checksum=bundle.manifest["data"]["checksum"])
    return folder


def write_page(out: Path, bundle: Bundle, report: dict) -> Path:
    """The report's page and figures in `out`, where its JSON lies."""
    shown = json.loads((out / evaluate_step.EXAMPLES).read_text())
    save_figures(out / "figures", report)
    return robustness_report(out / PAGE, title=page_title(bundle), report=report, examples=shown, card=card(bundle),
                             strength=strength_points(bundle.folder))


def fetch_report(registry: Registry, version: Version, folder: Path, suite: str = "") -> tuple[Path, Bundle]:
    """A version's report (a folder with page and JSON) and its bundle: of the suite asked for, else the strongest.

    Raises:
        InvalidInput: when there is none.
    """
    bundle = registry.fetch(version, folder / "bundle")
    if suite:
        one_of(suite, SUITES, "suite")
    for name in (suite,) if suite else reversed(SUITES):
        found = registry.artifacts(version, f"{PLACE}/{name}", folder / name)
        if found is not None:
            return found, bundle
    made = bundle.folder / REPORT
    if made.is_file() and suite in ("", json.loads(made.read_text()).get("suite", "quick")):
        return bundle.folder, bundle
    what = f"report of the suite {suite!r}" if suite else "report"
    raise InvalidInput(f"version {version.number} has no {what}: "
                       f"`redoubt evaluate {version.number} --suite {suite or 'quick'}` makes one")


def write_report(registry: Registry, number: str, out: Path, suite: str = "") -> tuple[Path, Path]:
    """Copy a version's report to `out`, and its facts as JSON beside it; returns both paths.

    Raises:
        InvalidInput: when there is no report, or it cannot be written there.
    """
    page_file(out)
    version = registry.version(number)
    with tempfile.TemporaryDirectory() as scratch:
        found, _ = fetch_report(registry, version, Path(scratch), suite)
        if not (found / PAGE).is_file():
            raise InvalidInput(f"version {number} has no report: it was not made by this pipeline")
        with writing(out):
            shutil.copyfile(found / PAGE, out)
            shutil.copyfile(found / REPORT, out.with_suffix(".json"))
    return out.absolute(), out.with_suffix(".json").absolute()


def page_file(out: Path) -> Path:
    """`out`, when it can name a page that has its facts beside it.

    Raises:
        InvalidInput: for a folder, for the name that the facts will have, and where the folder that it goes to is not
            there: that may be mistyped, and is never made.
    """
    if not out.parent.is_dir():
        raise InvalidInput(f"{out} cannot be written: there is no folder {out.parent}")
    if not out.name or out.is_dir():
        raise InvalidInput(f"{out} is a folder: name the file, such as {out / PAGE}")
    if out.suffix.lower() == ".json":
        raise InvalidInput(f"{out} is the page's name, and the facts go to a .json beside it: name it "
                           f"{out.with_suffix('.html')}")
    return out


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """What the file system refuses becomes InvalidInput."""
    try:
        yield
    except OSError as error:
        raise InvalidInput(f"{error.filename or out} cannot be written ({error.strerror or error})") from None


def compare_versions(registry: Registry, numbers: tuple[str, str], out: Path) -> Path:
    """Print two versions side by side and write the same as a page.

    Raises:
        InvalidInput: when one has no report, or the page cannot be written there.
    """
    page_file(out)
    with tempfile.TemporaryDirectory() as scratch:
        versions = [registry.version(number) for number in numbers]
        folders = [fetch_report(registry, v, Path(scratch) / f"{i}-{v.number}") for i, v in enumerate(versions)]
        reports = tuple(json.loads((found / REPORT).read_text()) for found, _ in folders)
        cards = tuple(card(bundle) for _, bundle in folders)
    names = tuple(f"version {version.number}" for version in versions)
    table = Table("", *names, "difference", title=registry.model_name)
    colours = {"good": "[green]", "bad": "[red]", "": ""}
    for line in lines(*reports):
        table.add_row(line.name, line.first, line.second, f"{colours[line.tone]}{line.difference}")
    console.print(table)
    if why := mismatch(*reports):
        console.print(f"[yellow]{why}[/]", highlight=False)
    with writing(out):
        return comparison(out, names, reports, cards).absolute()


def _say(row: dict) -> None:
    """One line for each finished row."""
    if row.get("epsilon"):
        console.print(f"{row['label']:>28}  {row['norm']} {row['epsilon']:<8.4g} {row['accuracy']:.4f}  "
                      f"({row['low']:.4f} to {row['high']:.4f}, n {row['n']})", highlight=False)
    elif "part" in row:
        console.print(f"{'AutoAttack':>28}  {row['part']}, batch {row['batch']} of {row['of']}: {row['accuracy']:.4f}",
                      highlight=False)


def _summary(report: dict) -> None:
    table = Table("check", "verdict", "found")
    for check in report["checks"]:
        colour = {"fail": "[red]", "pass": "[green]"}.get(check["verdict"], "")
        table.add_row(check["title"], f"{colour}{check['verdict']}", check["detail"])
    console.print(table)
    for row in report["worst_case"]:
        console.print(f"[bold]{row['accuracy']:.4f}[/] ({row['low']:.4f} to {row['high']:.4f}, n {row['n']}) withstand "
                      f"{', '.join(row['attacks'])} at {row['norm']} {row['epsilon']:.4g}; clean "
                      f"{report['clean_accuracy']:.4f}", highlight=False)
