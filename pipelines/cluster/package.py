"""The compiled pipeline: IR YAML, or manifests of a Kubernetes-native pipeline, and the name that follows from it."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from pipelines.cluster.settings import ClusterSettings
from redoubt.errors import InvalidInput

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", category=FutureWarning)
    from google.protobuf import json_format
    from kfp.compiler import compiler_utils
    from kfp.compiler import pipeline_spec_builder as builder

    from components.image import IMAGE
    from pipelines.chain import define
    from pipelines.cluster.place import placing


@dataclass(frozen=True, kw_only=True)
class Package:
    """A compiled pipeline.

    Attributes:
        content: the IR YAML.
        version: the version's name, which says what it holds: another one for any other content.
        image: in which its steps run.
    """

    content: bytes
    version: str
    image: str


def package(settings: ClusterSettings, pipeline=None) -> Package:
    """Compile the pipeline for a cluster.

    Args:
        pipeline: the retraining pipeline when None.

    Raises:
        InvalidInput: for an image that is none.
    """
    content = _written(settings, pipeline).encode()
    digest = hashlib.sha256(content).hexdigest()[:12]
    return Package(content=content, version=f"{settings.pipeline}-{digest}", image=settings.image or IMAGE)


def write(settings: ClusterSettings, out: Path, *, manifests: bool = False) -> Package:
    """Write the compiled pipeline to `out`.

    Args:
        manifests: write Pipeline and PipelineVersion objects for `kubectl apply` instead of the IR YAML.

    Raises:
        InvalidInput: when `out` cannot be written.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise InvalidInput(f"{out} must end in .yaml")
    made = package(settings)
    content = _written(settings, None, version=made.version).encode() if manifests else made.content
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(content)
    except OSError as error:
        raise InvalidInput(f"{out} cannot be written: {error.strerror}") from None
    return made


def _written(settings: ClusterSettings, pipeline, version: str = "") -> str:
    """The compiled pipeline's text; as manifests when a version's name is given."""
    made = pipeline(settings) if pipeline else define(placing(settings))
    spec = json_format.MessageToDict(made.pipeline_spec)
    if settings.image:
        for executor in spec["deploymentSpec"]["executors"].values():
            if executor.get("container", {}).get("image") == IMAGE:
                executor["container"]["image"] = settings.image
    spec = json_format.ParseDict(spec, type(made.pipeline_spec)())
    options = compiler_utils.KubernetesManifestOptions(
        pipeline_name=settings.pipeline, pipeline_version_name=version, include_pipeline_manifest=True,
        namespace=settings.namespace or None) if version else None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.yaml"
        builder.write_pipeline_spec_to_file(
            spec, made.description, made.platform_spec, str(file), kubernetes_manifest_options=options,
            kubernetes_manifest_format=bool(version))
        return file.read_text()
