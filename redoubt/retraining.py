"""What a retraining run is asked to do, and what it came to: from the parent's manifest, and from the registry.

Whoever starts a run uses this: the child process on this machine, and serving where Kubeflow Pipelines carries it out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from redoubt.bundle import Bundle
from redoubt.errors import Overtaken
from redoubt.registry import Registry
from redoubt.threat import ThreatModel, covers, dump_threats, load_threats

FEW = 5000   # training pictures below which fine-tuning is not worth it: from random weights, the
# digits withstand Linf 0.2 in 0.46 of cases then, fine-tuned from an undefended version in 0.31


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the gate said of a version that answers a campaign.

    Attributes:
        status: `promoted`, `waiting` (passed, for a person to promote) or `refused`.
        version, reason: its number, and why.
    """

    status: str
    version: int
    reason: str


def run_parameters(manifest: dict, threat: ThreatModel, *, parent: int, cause: str, **where) -> dict:
    """The run that answers a campaign: the parent's own parameters, covering its set and the new threat.

    Args:
        manifest: the parent version's manifest.
        where: model_name, tracking_uri, fpr, the gate's policy and whatever else is to differ from the parent's.
    """
    parameters = dict(manifest["parameters"])
    if parameters["objective"] == "standard":
        parameters |= {"objective": "blend", "epochs": 0}
    parameters.pop("precision", None)
    pictures = manifest["data"].get("splits", {}).get("train", {}).get("n", FEW)
    where["from_scratch"] = bool(where.get("from_scratch")) or pictures < FEW
    return {
        **parameters, **manifest["data"]["request"], "norm": threat.norm, "epsilon": threat.epsilon,
        "also": dump_threats(load_threats(json.dumps(manifest["threats"]))),
        "data_checksum": manifest["data"]["checksum"], "parent": parent, "cause": cause, **where,
    }


def chosen_fpr(bundle: Bundle) -> float:
    """The false-positive rate that the bundle's detector was fitted for; 0.01 without one."""
    return json.loads((bundle.folder / "detector.json").read_text())["fpr"] if bundle.has_detector else 0.01


def already_judged(registry: Registry, threat: ThreatModel, cause: str) -> Answer | None:
    """What the gate said of a version that was made for `cause` and covers `threat`; None while there is none.

    A promotion that was decided and not carried out, because the run was killed, is carried out now, unless the
    champion has changed since.
    """
    for version in registry.versions():
        decision = version.decision
        if not decision or version.tags.get("cause") != cause or not covers(version.threats, threat):
            continue
        status, reason = version.verdict, decision["reason"]
        if status == "promoted":
            over = registry.version(decision["champion"]) if decision["champion"] else None
            try:
                registry.promote(version, over=over, by="the gate")
            except Overtaken as error:
                status, reason = "refused", f"the champion changed before the promotion was carried out: {error}"
        return Answer(status=status, version=version.number, reason=reason)
    return None
