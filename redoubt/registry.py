"""The model registry: the only file that knows MLflow.

A version is a bundle folder, logged as the artifacts of a run. Aliases say which one serves: `champion`, the
`challenger` that a gate refused or has yet to judge, and the `previous_champion` that a rollback returns to. How they
change, one promotion at a time, lives in `redoubt.succession`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from redoubt.bundle import Bundle, open_bundle
from redoubt.errors import InvalidInput, Refused, RegistryError
from redoubt.names import check_model_name
from redoubt.promotion.history import GATE, OVERRIDE, Transition, transition
from redoubt.promotion.record import said
from redoubt.signing import trusted_keys
from redoubt.succession import Succession
from redoubt.threat import dump_threats
from redoubt.version import ALIASES, CHALLENGER, CHAMPION, PREFIX, PREVIOUS, PROMOTED, Version, check_version

__all__ = ["CHALLENGER", "CHAMPION", "PREVIOUS", "Registry", "Version", "check_model_name"]
_ARTIFACTS = "bundle"
_VERSION = "redoubt.version"   # on a run: the version that it became
# MLflow by default retries an unreachable server for four minutes; whoever asks here would rather know.
_ENVIRONMENT = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


class Registry:
    """The versions of one model name in one MLflow.

    Args:
        tracking_uri: `sqlite:////absolute/path/mlflow.db` or `http(s)://...`.
        model_name: the registered model's name.
        trusted: public keys, one of which must have signed what is fetched; by default those in REDOUBT_TRUSTED_KEYS,
            and with none no signature is asked for.

    Every method raises RegistryError when MLflow cannot be reached or refuses.
    """

    def __init__(self, tracking_uri: str, model_name: str, *, trusted: Sequence | None = None):
        check_model_name(model_name)
        self.trusted = trusted_keys() if trusted is None else tuple(trusted)
        self.tracking_uri, self.model_name = tracking_uri, model_name
        self._connected = None

    # -- reading ------------------------------------------------------------------------------------------------

    def champion(self) -> Version | None:
        """The version that the alias `champion` names; None while there is none."""
        return self.by_alias(CHAMPION)

    def by_alias(self, alias: str) -> Version | None:
        """The version behind `alias`; None when the model or the alias does not exist."""
        with self._mlflow("read aliases") as client:
            model = self._model(client)
            number = {} if model is None else model.aliases
            return self._read(client, number[alias]) if alias in number else None

    def version(self, number: int | str) -> Version:
        """One version by its number, or by one of the three aliases.

        Raises:
            InvalidInput: when it does not exist; the message lists those that do.
        """
        if number in ALIASES:
            found = self.by_alias(number)
            if found is None:
                raise InvalidInput(f"{self.model_name} has no {number}")
            return found
        check_version(str(number))
        found = {version.number: version for version in self.versions()}
        if int(number) not in found:
            have = ", ".join(map(str, sorted(found))) or "none"
            raise InvalidInput(f"{self.model_name} has no version {number}: there is {have}")
        return found[int(number)]

    def versions(self) -> list[Version]:
        """All versions, newest first."""
        with self._mlflow("list versions") as client:
            if self._model(client) is None:
                return []
            rows = client.search_model_versions(f"name = '{self.model_name}'", max_results=1000)
            return sorted((self._read(client, row.version) for row in rows), key=lambda v: -v.number)

    def models(self) -> list[str]:
        """The names of all models of this registry that have a version."""
        with self._mlflow("list models") as client:
            return sorted(row.name for row in client.search_registered_models() if row.latest_versions)

    def fetch(self, version: Version, folder: Path) -> Bundle:
        """Copy a version's bundle to `folder`, whole or not at all, and verify it.

        Raises:
            ArtifactError: when a file is missing or altered; `folder` is then left as it was.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as temporary:
            with self._mlflow(f"download version {version.number}") as client:
                got = Path(client.download_artifacts(version.run_id, _ARTIFACTS, temporary))
            open_bundle(got, trusted=self.trusted)
            if folder.exists():
                shutil.rmtree(folder)
            got.replace(folder)
        return open_bundle(folder)

    # -- writing ------------------------------------------------------------------------------------------------

    def register(
        self, bundle: Bundle, *, metrics: dict[str, float], parameters: dict, tags: dict[str, str],
        run_ids: Sequence[str] = (),
    ) -> Version:
        """Log a bundle to a run and make it the next version, as `challenger`.

        Args:
            metrics: finite numbers for the run; others are left out.
            parameters: the run's parameters.
            tags: searchable facts for run and version, without prefix; `threats` is added here.
            run_ids: runs to go on with instead of starting one; the first that exists and has no version yet is taken.
        """
        tags = {**tags, "threats": dump_threats(bundle.threats)}
        with self._mlflow("register a version") as client:
            run_id = self._unregistered(client, run_ids)
            run_id = run_id or client.create_run(self._experiment(client), run_name=tags.get("cause")).info.run_id
            client.log_artifacts(run_id, str(bundle.folder), _ARTIFACTS)
            if tags.get("cause"):
                client.update_run(run_id, name=tags["cause"])   # training did not know it
            known = client.get_run(run_id).data.params
            for key, value in parameters.items():
                if key not in known:   # MLflow refuses to write one again, even when nothing would change
                    client.log_param(run_id, key, value)
            for key, value in tags.items():   # MLflow searches runs by their own tags
                client.set_tag(run_id, PREFIX + key, str(value))
            for key, value in metrics.items():
                if value == value and abs(value) != float("inf"):
                    client.log_metric(run_id, key, value)
            self._succession(client).prepare()
            source = f"{client.get_run(run_id).info.artifact_uri}/{_ARTIFACTS}"
            made = client.create_model_version(
                self.model_name, source, run_id, tags={PREFIX + key: str(value) for key, value in tags.items()}
            )
            client.set_registered_model_alias(self.model_name, CHALLENGER, made.version)
            client.set_tag(run_id, _VERSION, made.version)
            client.set_terminated(run_id)
            return self._read(client, made.version)

    def record(
        self, version: Version, *, metrics: dict[str, float] | None = None, tags: dict[str, str] | None = None,
        folder: Path | None = None, at: str = "", datasets: Sequence[tuple[str, str, str, str]] = (),
    ) -> None:
        """Add what was found out about a version to its run.

        Args:
            metrics: finite numbers.
            tags: without prefix, for the run and the version; set last.
            folder: files that become artifacts below the path `at`.
            datasets: (name, digest, source, context) of data that went in; contexts are `training` or `evaluation`.
        """
        with self._mlflow("record an evaluation") as client:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            inputs = [DatasetInput(Dataset(name, digest[:36], "code", json.dumps({"source": source})),
                                   [InputTag("mlflow.data.context", context)])
                      for name, digest, source, context in datasets]
            if inputs:
                client.log_inputs(version.run_id, inputs)
            for key, value in (metrics or {}).items():
                client.log_metric(version.run_id, key, value)
            if folder is not None:
                client.log_artifacts(version.run_id, str(folder), at)
            for key, value in (tags or {}).items():
                client.set_tag(version.run_id, PREFIX + key, value)
            self._tag(client, version.number, **(tags or {}))

    def artifacts(self, version: Version, at: str, folder: Path) -> Path | None:
        """Copy what lies at the path `at` of a version's run to `folder`; None when nothing does."""
        with self._mlflow(f"download {at} of version {version.number}") as client:
            name, _, last = at.rpartition("/")
            if last not in {Path(entry.path).name for entry in client.list_artifacts(version.run_id, name or None)}:
                return None
            folder.mkdir(parents=True, exist_ok=True)
            return Path(client.download_artifacts(version.run_id, at, str(folder)))

    # -- a run while it goes on (redoubt.tracking) -----------------------------------------------------------------

    def begin_run(self, name: str, parameters: dict, *, run_id: str = ""):
        """Start a run, or take up `run_id`. Returns its id, and MLflow's monitor of processor, memory and GPU, started
        (None where psutil is missing), whose `finish` must be called.
        """
        with self._mlflow("begin a run") as client:
            from mlflow.entities import Param

            if run_id:
                client.update_run(run_id, status="RUNNING")
            else:
                run_id = client.create_run(self._experiment(client), run_name=name).info.run_id
            known = client.get_run(run_id).data.params
            client.log_batch(run_id, params=[Param(k, str(v)) for k, v in parameters.items() if k not in known])
            return run_id, self._monitor(run_id)

    def log_rows(self, run_id: str, rows: Sequence[tuple[int, float, dict[str, float]]]) -> None:
        """Write rows of (step, seconds since 1970, values) to a run; values that are not finite are left out."""
        with self._mlflow("log figures") as client:
            from mlflow.entities import Metric

            metrics = [Metric(name, float(value), int(1000 * at), step)
                       for step, at, values in rows for name, value in values.items() if abs(value) < float("inf")]
            for i in range(0, len(metrics), 1000):   # the most that MLflow takes at once
                client.log_batch(run_id, metrics=metrics[i : i + 1000])

    def end_run(self, run_id: str, *, failed: bool) -> None:
        """Say that a run has ended."""
        with self._mlflow("end a run") as client:
            client.set_terminated(run_id, "FAILED" if failed else "FINISHED")

    def _monitor(self, run_id: str):
        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)   # the caller warns, once
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            monitor = SystemMetricsMonitor(run_id, resume_logging=True, tracking_uri=self.tracking_uri)
        except ImportError:
            return None
        monitor.start()
        return monitor

    def _unregistered(self, client, run_ids: Sequence[str]) -> str:
        from mlflow.exceptions import MlflowException

        for run_id in filter(None, run_ids):
            try:
                if _VERSION not in client.get_run(run_id).data.tags:
                    return run_id
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
        return ""

    def tag(self, version: Version, **tags: str) -> None:
        """Set tags on a version; values become text."""
        with self._mlflow("set tags") as client:
            self._tag(client, version.number, **tags)

    def judged(self, version: Version, record: dict, words: str) -> None:
        """Store the gate's record with a version, and in `words` how it stands.

        A refusal does not undo that a version which had passed has been champion: it stays one to return to.
        """
        with self._mlflow("store a decision") as client:
            before = self._read(client, version.number)
            if before.passed and PROMOTED not in before.tags and any(
                    version.number in (change.version, change.over) for change in self._succession(client).read()):
                self._tag(client, version.number, **{PROMOTED: "set by hand"})
            self._tag(client, version.number, decision=json.dumps(record), gate=words)

    def describe(self, version: Version, markdown: str) -> None:
        """Set the text that MLflow's page shows above a version's facts."""
        with self._mlflow("describe a version") as client:
            client.update_model_version(self.model_name, str(version.number), markdown)

    def _tag(self, client, number: int, **tags: str) -> None:
        for key, value in tags.items():
            client.set_model_version_tag(self.model_name, str(number), PREFIX + key, str(value))

    def _succession(self, client) -> Succession:
        return Succession(client, self.model_name, lambda: self._experiment(client),
                          lambda number: self._if_there(client, number))

    def promote(
        self, version: Version, *, over: Version | str | None = "any", override: str = "", by: str = "", why: str = "",
    ) -> Transition | None:
        """Make `version` the champion; the champion until now becomes `previous_champion`.

        Args:
            over: the champion that the decision was made against (None: there was none). If another one has taken its
                place since, nothing is changed.
            override: the reason of a person who promotes it without a passing decision; it is recorded.
            by, why: for the history; by default the user that runs this process, and the override or the decision.

        Returns:
            The change, as it stands in the history; None when it was champion already.

        Raises:
            Overtaken: when another promotion came first; it says which.
            Refused: when neither a passing decision nor an override stands behind the version.
        """
        with self._mlflow("set aliases") as client:
            version = self._read(client, version.number)
            if not (version.passed or version.override or override):
                why = (version.decision or {}).get("reason") or "the gate has not judged it"
                raise Refused(f"version {version.number} may not become champion: {why}")
            expected = over if over is None or over == "any" else over.number
            change = transition(version.number, None, OVERRIDE if override or not version.passed else GATE, by=by,
                                why=override or why or said(version.override or version.decision or {}))
            return self._succession(client).take(change, expected)

    def rollback(self, *, why: str = "") -> Version:
        """Put the champion before this one back. A second call goes further back, never to a version that was rolled
        back from, or that serving would not follow because neither the gate nor a person ever passed it.

        Raises:
            InvalidInput: when there is none; it says which were passed over.
            Overtaken: when the champion changed at the same time.
        """
        with self._mlflow("roll back") as client:
            if self._model(client) is None:
                raise InvalidInput(f"{self.model_name} has no version: there is nothing to roll back")
            return self._read(client, self._succession(client).give_back(why=why).version)

    def behind(self) -> tuple[list[int], set[int]]:
        """The versions that rollbacks would return to one after the other, the nearest last; and those that were rolled
        back from."""
        with self._mlflow("read the history") as client:
            succession = self._succession(client)
            able, withdrawn, _ = succession.behind(succession.read(), succession.champion())
            return able, withdrawn

    def history(self) -> list[Transition]:
        """Every change of champion that was made through Redoubt, the first one first."""
        with self._mlflow("read the history") as client:
            return [] if self._model(client) is None else self._succession(client).read()

    # -- MLflow -------------------------------------------------------------------------------------------------

    @contextmanager
    def _mlflow(self, doing: str):
        """A client; what MLflow raises becomes a RegistryError that says what was being done."""
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"   # not for the environment to allow
        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            self._connected = self._connected or MlflowClient(self.tracking_uri, self.tracking_uri)
            yield self._connected
        except (MlflowException, OSError) as error:
            first_line = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise RegistryError(f"the registry at {self.tracking_uri} could not {doing}: {first_line}") from error

    def _model(self, client):
        from mlflow.exceptions import MlflowException

        try:
            return client.get_registered_model(self.model_name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _read(self, client, number) -> Version:
        row = client.get_model_version(self.model_name, str(number))
        tags = {key[len(PREFIX):]: value for key, value in row.tags.items() if key.startswith(PREFIX)}
        return Version(
            name=row.name, number=int(row.version), run_id=row.run_id, source=row.source, tags=tags,
            created=datetime.fromtimestamp(row.creation_timestamp / 1000, UTC), aliases=tuple(sorted(row.aliases)),
        )

    def _if_there(self, client, number: int) -> Version | None:
        from mlflow.exceptions import MlflowException

        try:
            return self._read(client, number)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _experiment(self, client) -> str:
        """The experiment named after the model. With SQLite its artifacts lie beside the database file."""
        found = client.get_experiment_by_name(self.model_name)
        if found is not None:
            return found.experiment_id
        location = None
        if self.tracking_uri.startswith("sqlite:///"):
            location = (Path(self.tracking_uri.removeprefix("sqlite:///")).parent / "artifacts").absolute().as_uri()
        return client.create_experiment(self.model_name, artifact_location=location)
