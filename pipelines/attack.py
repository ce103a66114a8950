"""`redoubt attack`: attack traffic at a served model."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from pipelines.home import check_there
from pipelines.traffic import Served, accuracy_of, adversarial
from redoubt.attacks import ATTACKS
from redoubt.data import load_source, prepare
from redoubt.errors import InvalidInput, RedoubtError, RegistryError, one_of
from redoubt.registry import Registry
from redoubt.threat import ThreatModel

console = Console()
BATCH = 64


def attack_served(
    url: str, model_name: str, tracking_uri: str, attack: str, threat: ThreatModel, *, n: int, seed: int,
    data_dir: str, scratch: Path,
) -> int:
    """Send `n` test pictures, one a request, attacked with the champion's own weights; print what came back.

    Returns:
        The exit code: 0, or 1 when a request failed.

    Raises:
        InvalidInput: for an unknown attack, or an address that is none.
        RegistryError: when there is no champion to take the weights from.
        RedoubtError: when nothing answers at `url`.
    """
    one_of(attack, (*ATTACKS, "none"), "attack")
    if not url.startswith(("http://", "https://")):
        raise InvalidInput(f"--url must begin with http:// or https://, such as http://127.0.0.1:8080, not {url!r}")
    client = Served(url, model_name)
    if not client.is_ready():
        raise RedoubtError(f"no model {model_name!r} is ready at {url}: start one with `redoubt serve "
                           f"--model {model_name}`")
    registry = Registry(check_there(tracking_uri), model_name)
    champion = registry.champion()
    if champion is None:
        raise RegistryError(f"{model_name} has no champion in {tracking_uri}: `redoubt run --model {model_name}` "
                            "makes one")
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        bundle = registry.fetch(champion, Path(folder) / "bundle")
        request = bundle.manifest["data"]["request"]
        source = load_source(request["dataset"], data_dir or request["data_dir"] or None,
                             size=request["image_size"] or None)
        prepared = prepare(source, Path(folder) / "data", seed=request["split_seed"], limit=request["limit"] or None)
        x, y = prepared.tensors("test")
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).repeat(n // len(x) + 1)[:n]
        model, answers = bundle.model(), []
        for start in track(range(0, n, BATCH), description=f"{attack} {threat}", console=console):
            rows = order[start : start + BATCH]
            pictures = x[rows] if attack == "none" else adversarial(
                model, x[rows], y[rows], threat, attack, levels=prepared.levels, seed=seed + start)
            answers += client.send_each(pictures)
    got = [answer for answer in answers if answer]
    flagged = sum(bool(answer.flagged.any()) for answer in got)
    strengths = torch.tensor([float(a.strength) for a in got if a.flagged.any()])
    console.print(f"{n} requests, {client.failed} failed; accuracy {accuracy_of(answers, y[order]):.3f}; "
                  f"{flagged} flagged" + (f", median estimated strength {strengths.median():.4f}" if flagged else ""),
                  highlight=False)
    return 1 if client.failed else 0
