"""How a drill looks in a terminal, and where its report goes."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipelines.drill.options import DrillOptions
from pipelines.drill.stages import MODEL, Drill
from pipelines.home import new_folder
from redoubt.report import drill_picture, drill_report

console = Console()
MARKS = {"ok": "[green]✓[/]", "failed": "[red]✗[/]", "running": "[yellow]…[/]"}


def run_drill(options: DrillOptions, home: Path, *, hold: bool = False) -> int:
    """Run a drill with live progress, print its table, write its report. Returns the exit code.

    Args:
        hold: before the server is stopped, wait for Ctrl-C, so that people can look at its page.
    """
    folder = new_folder(home / "drills", options.dataset.split(":")[0])
    console.print(f"[bold]drill[/] {options.dataset}, {options.attack} at {options.threat}, seed {options.seed}: "
                  f"only the drill knows the epsilon", highlight=False)
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            now = {"text": ""}

            def say(stage: str, text: str) -> None:
                now["text"] = text
                live.update(_stages(drill.result, now["text"]))

            drill = Drill(options, folder, say, page=_page, hold=_wait if hold else _go_on)
            result = drill.run()
            live.update(_stages(result, ""))
    else:
        result = Drill(options, folder, _plain, page=_page, hold=_wait if hold else _go_on).run()
        console.print(_stages(result, ""))
    return finish(result, folder)


def _page(url: str) -> None:
    console.print(f"live page: {url}/", highlight=False)


def _go_on(url: str) -> None:
    """Without --hold the server stops as soon as the attack is over."""


def _wait(url: str) -> None:
    # A shell lets what it starts in the background ignore Ctrl-C, and the drill would never end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console.print(f"the live page stays open at {url}/ until Ctrl-C; the comparison follows then", highlight=False)
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        console.print("going on", highlight=False)


def _plain(stage: str, text: str) -> None:
    """Progress for a log: a line for each thing that happens."""
    print(f"{time.strftime('%H:%M:%S')} {stage}{': ' if stage and text else ''}{text}", flush=True)


def _stages(result: dict, now: str) -> Table:
    table = Table.grid(padding=(0, 1))
    for row in result["stages"]:
        detail = now if row["status"] == "running" else row["detail"]
        seconds = "" if row["status"] == "running" else f"{row['seconds']:.0f} s"
        table.add_row(MARKS[row["status"]], row["name"], seconds, f"[dim]{detail}[/]")
    return table


def finish(result: dict, folder: Path) -> int:
    """Write the result, the page and the picture; print the table."""
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    drill_report(folder / "report.html", result)
    if result["outcome"] == "recovered":
        drill_picture(folder / "drill.svg", result)
    for heavy in ("data", "oracle", "undefended", "defended"):
        shutil.rmtree(folder / heavy, ignore_errors=True)
    console.print(figures(result))
    failure = result["failure"]
    if failure:
        console.print(f"[bold red]failed[/] in stage “{failure['stage']}”: {failure['reason']}", highlight=False)
    else:
        console.print("[bold green]recovered[/]")
        console.print(f"to serve its model: redoubt serve --model {MODEL} --home {shlex.quote(str(folder))}",
                      highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    return 0 if result["outcome"] == "recovered" else 1


def figures(result: dict) -> Table:
    """The drill's table."""
    table = Table(title=f"{result['dataset']}, {result['attack']}, seed {result['seed']}, {result['hardware']}")
    accuracy = result["accuracy"]
    columns = ("before", "after", "oracle") if accuracy.get("oracle") else ("before", "after")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for key, label in (("clean", "clean accuracy"), ("replayed", "the old attack, replayed"),
                       ("fgsm", "fresh FGSM"), ("pgd20", "fresh PGD-20")):
        table.add_row(label, *(_percent((accuracy.get(who) or {}).get(key)) for who in columns))
    table.add_section()
    strength = result["strength"]
    if strength:
        table.add_row("epsilon of the attack", f"{result['epsilon_true']:.4f}")
        table.add_row("  estimated, 98 % interval", f"{strength['estimate']:.4f}",
                      f"{strength['low']:.4f}-{strength['high']:.4f}")
        trained = ("", f"{strength['matched']:.4f}", f"{result['epsilon_true']:.4f}")
        table.add_row("  matched, trained for", *trained[: len(columns)])
    for key, label in (("requests_until_alarm", "requests until the alarm"),
                       ("seconds_alarm_to_swap", "seconds from alarm to swap"), ("total_requests", "requests"),
                       ("failed_requests", "requests that failed"), ("retrains", "retraining runs"),
                       ("seconds", "seconds in all")):
        if result.get(key) is not None:
            table.add_row(label, str(result[key]))
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
