"""Between a request and its run on the cluster stands the registry: it has the parent's parameters, and the verdict."""

from __future__ import annotations

import tempfile
from pathlib import Path

from redoubt.errors import InvalidInput
from redoubt.registry import Registry
from redoubt.retraining import already_judged, chosen_fpr, run_parameters
from redoubt.threat import ThreatModel
from serving.launcher import Result


class RegistryAnswers:
    """Reads parents and verdicts of one model from MLflow.

    Args:
        tracking_uri: MLflow's address as this server sees it.
        seen_by_runs: its address as the run's pods see it; the same when empty.
        scratch: folder for a parent that is fetched, removed again at once.

    Raises:
        InvalidInput: for a registry that pods cannot reach.
    """

    def __init__(self, tracking_uri: str, seen_by_runs: str = "", *, scratch: Path | None = None):
        self._uri, self._theirs, self._scratch = tracking_uri, seen_by_runs or tracking_uri, scratch
        if not self._theirs.startswith(("http://", "https://")):
            raise InvalidInput(f"the pods of a run cannot reach {self._theirs}: set REDOUBT_TRACKING_URI to the http "
                               "address of an MLflow server")

    def parameters(self, request: dict) -> dict:
        """The parent's own parameters, covering its set and the requested threat."""
        registry = Registry(self._uri, request["model_name"])
        parent = registry.version(request["parent_version"])
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            bundle = registry.fetch(parent, Path(folder) / "parent")
            return run_parameters(
                bundle.manifest, _threat(request), parent=parent.number, cause=str(request["campaign"]),
                fpr=chosen_fpr(bundle), model_name=request["model_name"], tracking_uri=self._theirs,
                from_scratch=bool(request.get("from_scratch", False)), policy=request.get("policy", ""),
            )

    def judged(self, request: dict) -> Result | None:
        """What the gate said of the version that answers the request."""
        registry = Registry(self._uri, request["model_name"])
        done = already_judged(registry, _threat(request), str(request["campaign"]))
        if done is None:
            return None
        return Result(status=done.status, version=str(done.version), reason=done.reason)


def _threat(request: dict) -> ThreatModel:
    return ThreatModel(request["norm"], request["epsilon"])
