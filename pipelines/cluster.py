"""The pipeline on a cluster: compiled, submitted, followed."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

from pipelines.parameters import RunParameters
from redoubt.errors import InvalidInput, RedoubtError

ENDED = {"SUCCEEDED": 0, "SKIPPED": 0, "FAILED": 1, "CANCELED": 1}
POLL_SECONDS = 5
TIMEOUT_SECONDS = 24 * 3600


def compile_to(out: Path, image: str = "") -> str:
    """Write the pipeline's IR YAML; returns the image that its steps run in.

    Args:
        image: for every step; must be chosen before the components are imported, which is why this is the one place
            that imports them.

    Raises:
        InvalidInput: when `out` cannot be written.
    """
    if "@" in image and not re.fullmatch(r".+@sha256:[0-9a-f]{64}", image):
        raise InvalidInput(f"image {image!r}: after @ comes sha256: and 64 hexadecimal digits")
    if image:
        os.environ["REDOUBT_IMAGE"] = image
    from kfp import compiler

    from components.image import IMAGE
    from pipelines.chain import pipeline

    if out.suffix not in (".yaml", ".yml"):
        raise InvalidInput(f"{out} must end in .yaml")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(pipeline, str(out))
    except OSError as error:
        raise InvalidInput(f"{out} cannot be written: {error}") from None
    return IMAGE


def submit_run(parameters: RunParameters, *, endpoint: str, namespace: str, image: str, wait: bool) -> int:
    """Start a run on a cluster. Returns the command's exit code.

    Raises:
        InvalidInput: without an endpoint.
        RedoubtError: when the server refuses or cannot be reached.
    """
    endpoint = endpoint or os.environ.get("REDOUBT_KFP_ENDPOINT", "")
    if not endpoint:
        raise InvalidInput("no Kubeflow Pipelines API named: give --endpoint or set REDOUBT_KFP_ENDPOINT")
    warnings.filterwarnings("ignore", category=FutureWarning, module="kfp")
    import kfp
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / "pipeline.yaml"
            compile_to(package, image)
            client = kfp.Client(host=endpoint, namespace=namespace or "kubeflow")
            run = client.create_run_from_pipeline_package(
                str(package), arguments=parameters.to_json(), experiment_name=parameters.model_name,
                namespace=namespace or None,
            )
        print(f"run {run.run_id}: {endpoint.rstrip('/')}/#/runs/details/{run.run_id}", flush=True)
        return _follow(client, run.run_id) if wait else 0
    except (ApiException, HTTPError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error).splitlines()[0]
        raise RedoubtError(f"{endpoint} did not take the run: {reason}") from None


def _follow(client, run_id: str) -> int:
    """Poll until the run has ended, in whatever state."""
    deadline, last = time.monotonic() + TIMEOUT_SECONDS, ""
    while time.monotonic() < deadline:
        run = client.get_run(run_id)
        if run.state != last:
            last = run.state
            print(f"{time.strftime('%H:%M:%S')} {last}", flush=True)
        if last in ENDED:
            if ENDED[last] and run.error:
                print(run.error.message, file=sys.stderr)
            return ENDED[last]
        time.sleep(POLL_SECONDS)
    raise RedoubtError(f"run {run_id} did not end within {TIMEOUT_SECONDS // 3600} hours")
