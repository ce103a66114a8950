"""Answer one retraining request: `python -m pipelines.retrain FOLDER`.

The folder is the claim. Whoever holds the lock on FOLDER/lock runs it; everyone else ends at once, and so does whoever
finds result.json. Serving reads the result from there, also after it was restarted.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from pipelines.local import RunResult, execute, write_json
from pipelines.parameters import retraining
from redoubt.errors import RedoubtError
from redoubt.registry import Registry
from redoubt.retraining import already_judged, chosen_fpr
from redoubt.threat import ThreatModel


def main(folder: Path) -> int:
    """Run the request in `folder`. Returns 0 when it has a result that is no failure, 3 when another run holds it."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return 3
        if (folder / "result.json").exists():
            return 0
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            result = answer(json.loads((folder / "request.json").read_text()), folder)
        except (RedoubtError, OSError, KeyError, ValueError) as error:
            result = RunResult(status="failed", reason=f"{type(error).__name__}: {error}")
        write_json(folder / "result.json", asdict(result))
        shutil.rmtree(folder / "artifacts", ignore_errors=True)
        return 1 if result.status == "failed" else 0


def answer(request: dict, folder: Path) -> RunResult:
    """Run the pipeline for one request, with the parent version's parameters."""
    registry = Registry(request["tracking_uri"], request["model_name"])
    parent = registry.version(request["parent_version"])
    threat, cause = ThreatModel(request["norm"], request["epsilon"]), str(request["campaign"])
    done = already_judged(registry, threat, cause)
    if done is not None:   # by a run that was killed before it could say so
        return RunResult(status=done.status, version=done.version, reason=done.reason)
    bundle = registry.fetch(parent, folder / "parent")
    parameters = retraining(bundle.manifest, threat, parent=parent.number, cause=cause, fpr=chosen_fpr(bundle),
                            model_name=request["model_name"], tracking_uri=request["tracking_uri"],
                            from_scratch=bool(request.get("from_scratch", False)), policy=request.get("policy", ""))
    write_json(folder / "parameters.json", parameters.to_json())
    return execute(parameters, folder)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
