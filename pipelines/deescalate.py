"""After a long all-clear: a run that covers less, for the sake of clean accuracy."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import httpx

from components.gate.step import LOWERED
from pipelines.console import make_console
from pipelines.home import home_folder
from pipelines.options import policy_text
from pipelines.parameters import RunParameters, retraining
from redoubt.detection.matching import FLOOR
from redoubt.errors import InvalidInput, Refused
from redoubt.registry import Registry, Version
from redoubt.threat import ThreatModel, dump_threats, parse_epsilon

DAY = 24 * 3600.0
console = make_console()


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """What counts as a long all-clear, and who knows.

    Attributes:
        url, api_key: the server that watched, and its key if it asks for one.
        days: for how long there must have been no attack and no other champion.
        inputs: how many distinct inputs the server must have watched since it loaded the champion.
    """

    url: str
    api_key: str = ""
    days: float = 7.0
    inputs: int = 1000


def propose(
    registry: Registry, quiet: Quiet, *, epsilon: str, start: bool, policy: Path | None, home: Path | None
) -> int:
    """Print the proposal, or start the run here. Returns the command's exit code.

    Raises:
        InvalidInput: when there is nothing to lower, or `epsilon` is no lower one.
        Refused: when all has not been clear for long enough.
    """
    champion = registry.champion()
    if champion is None or not champion.threats:
        who = f"version {champion.number} was trained for no threat model" if champion else "there is no champion"
        raise InvalidInput(f"{registry.model_name}: {who}: nothing can be lowered")
    threat = lower(champion, epsilon)
    days, inputs = all_clear(read_status(quiet, registry.model_name), registry, champion, quiet)
    console.print(
        f"Version {champion.number} covers {', '.join(map(str, champion.threats))}. No attack for {days:.1f} days, "
        f"{inputs} distinct inputs watched. Proposed: a version for {threat}, in the hope of better clean accuracy.",
        highlight=False)
    if not start:
        console.print(f"To start it here: redoubt deescalate {registry.model_name} --epsilon {threat.epsilon:g} --yes",
                      highlight=False, soft_wrap=True)
        return 0
    from pipelines.show import follow_run

    folder = home_folder(home)
    return follow_run(parameters(registry, champion, threat, folder, policy_text(policy)), folder)


def lower(champion: Version, epsilon: str) -> ThreatModel:
    """The threat model to cover from now on: half of the present one unless said otherwise."""
    present = next((threat for threat in champion.threats if threat.norm == "Linf"), champion.threats[0])
    wanted = parse_epsilon(epsilon, norm=present.norm) if epsilon else present.epsilon / 2
    if wanted >= present.epsilon:
        raise InvalidInput(f"epsilon must be below the champion's {present}, not {wanted:g}")
    if wanted < FLOOR:
        raise InvalidInput(f"epsilon {wanted:g} is below the smallest that the monitor would ask for, {FLOOR:g}; "
                           "an undefended version comes from `redoubt run --objective standard`")
    return ThreatModel(present.norm, float(f"{wanted:.4g}"))


def read_status(quiet: Quiet, model_name: str) -> dict:
    """What the server says of the model, whether it serves that one alone or several.

    Raises:
        InvalidInput: when the address is not that of a server which can tell.
    """
    headers = {"Authorization": f"Bearer {quiet.api_key}"} if quiet.api_key else {}
    base = quiet.url.rstrip("/")
    try:
        answer = httpx.get(f"{base}/status", headers=headers, timeout=10)
        if answer.status_code == 404:
            answer = httpx.get(f"{base}/models/{model_name}/status", headers=headers, timeout=10)
        answer.raise_for_status()
        found = answer.json()
        if "campaigns" not in found:
            raise ValueError("this is no status")
        return found
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(f"{quiet.url} does not say what it saw ({why}); only the server that watched the traffic "
                           "knows whether all is clear: name it with --url") from None


def all_clear(status: dict, registry: Registry, champion: Version, quiet: Quiet) -> tuple[float, int]:
    """For how many days there has been no attack on this champion, and how many inputs were watched.

    Raises:
        Refused: when that is too little.
    """
    served = status.get("champion") or {}
    if (served.get("name"), served.get("version")) != (registry.model_name, str(champion.number)):
        raise Refused(f"{quiet.url} serves {served.get('name')} version {served.get('version')}, not the champion "
                      f"{registry.model_name} version {champion.number}")
    attacks = [row for row in status["campaigns"] if row["outcome"] != "shift"]
    if any(row["state"] == "open" for row in attacks):
        raise Refused(f"campaign {attacks[0]['id']} is still open: this is no time to cover less")
    since = [_became(registry, champion), *(row["closed_at"] for row in attacks)]
    days, inputs = (time.time() - max(since)) / DAY, int((status.get("monitor") or {}).get("distinct", 0))
    if days < quiet.days:
        raise Refused(f"the last attack or change of champion was {days:.1f} days ago: --days {quiet.days:g} are asked "
                      "for")
    if inputs < quiet.inputs:
        raise Refused(f"the server watched {inputs} distinct inputs since it loaded the champion: --inputs "
                      f"{quiet.inputs} are asked for")
    return days, inputs


def _became(registry: Registry, champion: Version) -> float:
    """When the champion became champion, seconds since 1970.

    Raises:
        Refused: when the history does not say: somebody moved the alias in another way.
    """
    last = next(reversed(registry.history()), None)
    if last is not None and not last.at:
        raise Refused(f"nobody knows since when version {champion.number} is champion: {last.why}")
    if last is None or last.version != champion.number:
        raise Refused(f"nobody knows since when version {champion.number} is champion: the alias was set by hand, "
                      f"and the history ends with {f'version {last.version}' if last else 'nothing'}. After the next "
                      "`redoubt promote` or `redoubt rollback` the days are counted again")
    return datetime.fromisoformat(last.at).timestamp()


def parameters(
    registry: Registry, champion: Version, threat: ThreatModel, folder: Path, policy: str
) -> RunParameters:
    """The champion's own run again, for less."""
    bundle = registry.fetch(champion, folder / "deescalate")
    again = retraining(bundle.manifest, threat, parent=champion.number, cause=LOWERED, policy=policy,
                       model_name=registry.model_name, tracking_uri=registry.tracking_uri)
    others = [other for other in champion.threats if other.norm != threat.norm]
    return replace(again, also=dump_threats(others))
