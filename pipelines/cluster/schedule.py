"""Recurring runs: the same version and parameters, on a cron schedule or at an interval."""

from __future__ import annotations

import re

from pipelines.cluster.settings import ClusterSettings
from pipelines.cluster.submit import Version, run_name
from redoubt.cluster.runs import Pipelines, once
from redoubt.errors import InvalidInput

_UNITS = {"m": 60, "h": 3600, "d": 86400}


def trigger(cron: str, every: str) -> dict:
    """What starts the runs.

    Args:
        cron: six fields, seconds first, as the server reads it; five are taken, too, at second 0.
        every: an interval such as 30m, 12h or 7d.

    Raises:
        InvalidInput: unless exactly one is given, and it can be read.
    """
    if bool(cron) == bool(every):
        raise InvalidInput("give either --cron or --every")
    if every:
        match = re.fullmatch(r"([1-9][0-9]*)([mhd])", every)
        if not match:
            raise InvalidInput(f"--every {every!r}: write 30m, 12h or 7d")
        return {"periodic_schedule": {"interval_second": str(int(match[1]) * _UNITS[match[2]])}}
    parts = cron.split()
    if len(parts) not in (5, 6) or not all(re.fullmatch(r"[0-9A-Za-z*,/?L#-]+", part) for part in parts):
        raise InvalidInput(f"--cron {cron!r}: write five fields such as '0 3 * * 1', minute first, or six with the "
                           "second before them")
    return {"cron_schedule": {"cron": " ".join(["0", *parts] if len(parts) == 5 else parts)}}


def _same(found: dict, when: dict) -> bool:
    """Whether a server's trigger is ours: it may add fields of its own, as the time of a beginning."""
    return all((found.get(kind) or {}).get(name) == value for kind, given in when.items() for name, value in
               given.items())


def make(
    api: Pipelines, settings: ClusterSettings, version: Version, parameters: dict, when: dict
) -> tuple[dict, bool]:
    """Make a recurring run in place of one of the same name. Returns it and whether it is new.

    Its runs do not catch up on times that were missed, and one waits for the last to end.
    """
    experiment = api.experiment(settings.experiment or parameters.get("model_name") or settings.pipeline)
    name = f"every-{run_name(parameters, version.name)}"
    body = {
        "display_name": name, "experiment_id": experiment, "mode": "ENABLE", "max_concurrency": "1",
        "no_catchup": True, "trigger": when, "runtime_config": {"parameters": parameters},
        "pipeline_version_reference": {"pipeline_id": version.pipeline, "pipeline_version_id": version.version},
    }
    if settings.service_account:
        body["service_account"] = settings.service_account

    def there() -> dict | None:
        return next((row for row in api.recurring(experiment) if row.get("display_name") == name), None)

    old = there()
    if old is not None and _same(old.get("trigger") or {}, when):
        return old, False
    made = once(lambda: api.schedule(body), lambda: next(
        (row for row in api.recurring(experiment) if row.get("display_name") == name
         and row["recurring_run_id"] != (old or {}).get("recurring_run_id")), None))
    if old is not None:   # only now: there is never a time without any
        api.unschedule(old["recurring_run_id"])
    return made, True
