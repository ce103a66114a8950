"""Every setting of the server, documented where it is declared. Environment variables carry the prefix REDOUBT_."""

from __future__ import annotations

import json
import math
import os
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from redoubt.detection.matching import CEILING, FLOOR, MINIMUM, RATIO
from redoubt.errors import InvalidInput
from redoubt.names import check_model_name
from redoubt.promotion.policy import load_policy
from redoubt.signing import trusted_keys as load_trusted_keys
from redoubt.threat import ThreatModel


class Settings(BaseSettings):
    """What an operator may choose. Each field is also an option of `python -m serving`, such as --poll-seconds."""

    model_config = SettingsConfigDict(
        env_prefix="REDOUBT_", env_ignore_empty=True, extra="ignore", frozen=True, protected_namespaces=(),
        allow_inf_nan=False,
        cli_kebab_case=True, cli_prog_name="python -m serving", cli_implicit_flags=True, cli_hide_none_type=True,
    )

    # -- what is served, and where from
    model_name: str = Field("redoubt", description="Registered model to serve, and its name in URLs")
    models: Annotated[dict[str, dict[str, Any]], NoDecode] = Field(
        default_factory=dict, description="Several models in one server: a JSON object from each one's name to the "
        "settings that differ for it, {} for none; empty means the one of model_name"
    )
    home: Path = Field(
        Path(".redoubt"), description="Folder for the ledger, fetched versions and retraining runs; made when missing"
    )
    tracking_uri: str = Field(
        "", description="MLflow's address; empty means MLFLOW_TRACKING_URI, or else sqlite in HOME/mlflow.db"
    )
    trusted_keys: list[Path] = Field(
        default_factory=list, description="Public keys (a JSON list of files), one of which must have signed what is "
        "served; empty asks for no signature"
    )
    poll_seconds: float = Field(5.0, gt=0, le=3600, description="Seconds between two looks at the champion alias")
    require_decision: bool = Field(
        True, description="Follow the champion alias only to a version that the gate passed or that a person promoted "
        "with an override; false follows it anywhere"
    )

    # -- HTTP
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one and prints it")
    tls_cert: Path | None = Field(None, description="Certificate chain (PEM) for https; with REDOUBT_TLS_KEY")
    tls_key: Path | None = Field(None, description="Private key (PEM) of the certificate")
    max_body_bytes: int = Field(32 * 2**20, ge=1024, description="Largest request body in bytes; more gets 413")
    max_batch: int = Field(512, ge=1, description="Most inputs in one request")
    max_image_side: int = Field(
        4096, ge=8, description="Largest width or height in pixels of an uploaded picture, read before decoding"
    )
    max_connections: int = Field(2048, ge=1, description="Most connections at a time; more get 503, probes apart")
    max_in_flight: int = Field(512, ge=1, description="Inference requests between arrival and answer; more get 429")
    max_in_flight_bytes: int = Field(
        256 * 2**20, ge=1024, description="Bytes of their bodies together; a body of unknown length counts in full"
    )
    request_timeout_seconds: float = Field(
        30.0, gt=0, le=3600, description="Longest that a request may take; the parameter `timeout` may ask for less"
    )
    drain_seconds: float = Field(
        0.0, ge=0, le=600, description="After SIGTERM, seconds of serving while not ready, so that balancers notice"
    )

    # -- computing
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    accelerate: bool = Field(
        True, description="On a CPU, a frozen form of the model answers batches where it is quicker, and the same"
    )
    threads: int = Field(1, ge=1, le=256, description="torch threads within one operation")
    workers: int = Field(
        1, ge=1, le=64, description="Batches computed at a time; with one, the monitor sees strict arrival order"
    )
    batch_inputs: int = Field(64, ge=1, le=4096, description="Inputs after which a batch of several requests is full")
    batch_delay_ms: float = Field(
        2.0, ge=0, le=1000, description="Longest that a batch waits for company under load; a lone request never waits"
    )
    queue_inputs: int = Field(2048, ge=1, description="Inputs that may wait for a computing thread; more get 429")
    detection: bool = Field(True, description="False answers without verdicts: nothing is watched")

    # -- swaps
    serve_previous: bool = Field(
        False, description="The champion before may be asked for by its version, too: it may be the weaker one"
    )
    probation_seconds: float = Field(
        300.0, ge=0, description="After a swap: a champion that errs or slows within them is rolled back; 0 is never"
    )
    slow_factor: float = Field(
        3.0, gt=1, description="Times the old computing time, on the same inputs, that make a new one too slow"
    )

    shadow_share: float = Field(
        0.0, ge=0, le=1, description="Share of the traffic that the challenger computes, too, for comparison; 0 is none"
    )

    # -- verdicts
    policy: Literal["flag", "block", "shadow"] = Field(
        "flag", description="Flagged inputs: flag answers with the verdict, block refuses (403), shadow tells nobody"
    )
    verdict_detail: Literal["exact", "rounded", "verdict", "none"] = Field(
        "rounded", description="How much of a verdict clients are told; exact scores help who attacks the detector"
    )

    # -- who may do what
    keys_file: Path | None = Field(None, description="API keys' hashes; empty means HOME/keys.json when that exists")
    trusted_proxy: bool = Field(
        False, description="A proxy in front decides who may come: other hosts than loopback without keys are allowed"
    )
    proxies: list[str] = Field(
        default_factory=list, description="Networks (JSON list of CIDRs) whose X-Forwarded-For is believed"
    )
    oidc_issuer: str = Field("", description="Issuer whose bearer tokens are taken beside API keys; needs PyJWT")
    oidc_audience: str = Field("", description="Audience that a token must carry; needed with an issuer")
    oidc_roles_claim: str = Field("roles", description="Claim of a token that lists its roles")
    rate_limit: float = Field(0.0, ge=0, description="Requests a second for each client; 0 is no limit")
    rate_burst: float = Field(0.0, ge=0, description="Requests that a client may make at once; 0 is two seconds' worth")
    few_clients: int = Field(
        3, ge=0, description="Clients that cannot set a campaign's strength where many take part; 0 lets anybody set it"
    )

    # -- feedback and quarantine
    feedback_memory: int = Field(100_000, ge=1, description="Inputs whose predictions are remembered for feedback")
    quarantine: bool = Field(False, description="Keep flagged inputs in HOME/quarantine for people to look at")
    quarantine_count: int = Field(1000, ge=1, description="Most flagged inputs kept; the oldest goes first")
    quarantine_bytes: int = Field(256 * 2**20, ge=4096, description="Most bytes of them")
    quarantine_hours: float = Field(24.0 * 7, gt=0, description="Hours that one is kept")

    # -- telling others
    log_format: Literal["text", "json"] = Field("text", description="text for people, json for machines")
    access_log: bool = Field(False, description="One line a request")
    traces: bool = Field(False, description="OpenTelemetry spans; OTEL_EXPORTER_OTLP_ENDPOINT says where they go")
    webhook_url: str = Field("", description="Where CloudEvents of alarms, retraining and promotions are posted")
    webhook_secret: SecretStr = Field(SecretStr(""), description="Key of the HMAC-SHA256 that signs each event")
    webhook_queue: int = Field(1000, ge=1, description="Events that wait for delivery; beyond, the oldest is dropped")

    # -- alarm and campaigns
    alarm_run_length: float = Field(
        1e8, gt=1, description="Mean number of distinct clean inputs between two false alarms of the monitor"
    )
    dedupe_window: int = Field(
        65536, ge=1, description="Distinct inputs remembered; a repeat among them does not count again"
    )
    lookback: int = Field(
        256, ge=0, description="Distinct inputs before an alarm whose flagged ones count as the campaign's evidence"
    )
    campaign_min_inputs: int = Field(
        MINIMUM, ge=1, description="Flagged inputs before a campaign is judged, and again after as many more"
    )
    campaign_max_inputs: int = Field(512, ge=1, description="Most recent flagged inputs that a judgement looks at")
    all_clear_inputs: int = Field(
        200, ge=8, description="Distinct inputs with no more flagged ones than clean traffic has, that end a campaign"
    )
    all_clear_seconds: float = Field(900.0, gt=0, description="Seconds without a flagged input that end a campaign")

    # -- matching
    epsilon_floor: float = Field(FLOOR, gt=0, description="Smallest epsilon that a run may be asked for")
    epsilon_ceiling: float = Field(CEILING, gt=0, description="Largest Linf epsilon that a run may be asked for")
    l2_ceiling: float = Field(
        0.1, gt=0, description="Largest L2 epsilon that a run may be asked for, times the root of an input's values"
    )
    epsilon_ratio: float = Field(
        RATIO, gt=1, le=1.1,
        description="Ratio between neighbours on the grid of epsilons; whole pixel levels further apart count too",
    )

    # -- retraining
    gate_policy: Path | None = Field(
        None, description="The gate's policy for retraining runs, a YAML file; empty means the defaults"
    )
    retrain: bool = Field(True, description="False is a dry run: campaigns are judged, no run is started")
    retrain_command: list[str] = Field(
        default_factory=lambda: [sys.executable, "-m", "pipelines.retrain"], min_length=1,
        description="Command (a JSON list) that takes a request's folder as its last argument",
    )
    retrain_from_scratch: bool = Field(
        False, description="True trains from random weights; False fine-tunes the champion's, three times sooner"
    )
    promote_command: list[str] = Field(
        default_factory=lambda: [sys.executable, "-m", "pipelines.cli", "promote"],
        description="Command (a JSON list) that has the gate judge a version; [] where it cannot be started",
    )
    cool_down_seconds: float = Field(600.0, ge=0, description="Seconds after one retraining run before the next")
    daily_budget: int = Field(6, ge=0, description="Most retraining requests within 24 hours")
    retrain_attempts: int = Field(3, ge=1, description="Attempts at one request before it is given up as failed")
    backoff_seconds: float = Field(30.0, ge=0, description="Wait after the first failed attempt; doubles each time")
    retrain_timeout_seconds: float = Field(6 * 3600.0, gt=0, description="Longest that one attempt may run")

    # -- on a cluster (docs/cluster.md)
    ledger: Literal["sqlite", "kubernetes"] = Field(
        "sqlite", description="Where campaigns are kept: a file in HOME for one server, or a Lease and ConfigMaps that "
        "replicas share"
    )
    launcher: Literal["child", "kfp"] = Field(
        "child", description="Who carries out retraining runs: a child process, or Kubeflow Pipelines"
    )
    namespace: str = Field("", description="Namespace of Lease, ConfigMaps and claims; empty means the pod's own")
    ledger_name: str = Field(
        "", description="Beginning of the names of Lease and ConfigMaps; empty makes it from the model's name"
    )
    replica: str = Field("", description="This replica's name, best the pod's; empty means the host's name")
    pod_uid: str = Field("", description="The pod's uid, so that its description shows the Events")
    lease_seconds: float = Field(
        15.0, ge=3, le=300, description="Seconds without a sign of the leader before another replica leads"
    )
    kfp_endpoint: str = Field(
        "", description="Address of the Kubeflow Pipelines API, such as http://ml-pipeline.kubeflow:8888"
    )
    kfp_namespace: str = Field("", description="Profile namespace of the runs, on a multi-user server")
    kfp_pipeline: str = Field("", description="Id of the pipeline that retrains; `redoubt compile --upload` prints it")
    kfp_version: str = Field("", description="Id of its version: nothing else is ever started")
    kfp_experiment: str = Field("redoubt-retraining", description="Experiment that holds the retraining runs")
    kfp_service_account: str = Field("", description="Service account of a run's pods; empty means the default")
    kfp_token_file: Path | None = Field(
        None, description="Projected service-account token for the API, read anew for every call; empty sends none"
    )
    kfp_ca_file: Path | None = Field(None, description="Authority to trust for the API instead of the system's")
    kfp_poll_seconds: float = Field(5.0, gt=0, le=600, description="Seconds between two looks at a run")
    run_tracking_uri: str = Field(
        "", description="MLflow's address as a run's pods see it; empty means the same as this server's"
    )

    @field_validator("proxies")
    @classmethod
    def _networks(cls, proxies: list[str]) -> list[str]:
        for network in proxies:
            ip_network(network)
        return proxies

    @field_validator("model_name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        """It becomes a part of URLs and a folder's name."""
        check_model_name(name)
        return name

    @field_validator("models", mode="before")
    @classmethod
    def _object(cls, models: Any) -> Any:
        """Read here: pydantic-settings would add what the environment says to what the command line says."""
        try:
            return json.loads(models) if isinstance(models, str) else models
        except ValueError:
            raise ValueError('write a JSON object such as {"redoubt": {}, "traffic": {"policy": "block"}}') from None

    @field_validator("models")
    @classmethod
    def _plain_names(cls, models: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in models:
            check_model_name(name)
        return models

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        ThreatModel("Linf", self.epsilon_ceiling)
        if self.epsilon_floor > self.epsilon_ceiling:
            raise ValueError(f"epsilon_floor {self.epsilon_floor} is above epsilon_ceiling {self.epsilon_ceiling}")
        if self.campaign_min_inputs > self.campaign_max_inputs:
            raise ValueError("campaign_min_inputs is above campaign_max_inputs")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("REDOUBT_TLS_CERT and REDOUBT_TLS_KEY go together: give both or neither")
        if bool(self.oidc_issuer) != bool(self.oidc_audience):
            raise ValueError("REDOUBT_OIDC_ISSUER and REDOUBT_OIDC_AUDIENCE go together: give both or neither")
        if self.webhook_url and not self.webhook_url.startswith(("http://", "https://")):
            raise ValueError("webhook_url must begin with http:// or https://")
        if self.launcher == "kfp":
            lacking = [name for name in ("kfp_endpoint", "kfp_pipeline", "kfp_version") if not getattr(self, name)]
            if lacking:
                raise ValueError(f"launcher kfp needs {', '.join('REDOUBT_' + name.upper() for name in lacking)}")
        if (self.launcher == "kfp" and self.ledger != "kubernetes") or (
            self.retrain and self.ledger == "kubernetes" and self.launcher != "kfp"
        ):
            raise ValueError("a run claims its campaign by a Lease: REDOUBT_LEDGER=kubernetes and REDOUBT_LAUNCHER=kfp "
                             "go together, unless REDOUBT_RETRAIN=false")
        load_policy(self.gate_policy)
        load_trusted_keys(self.trusted_keys)
        object.__setattr__(self, "home", self.home.expanduser().absolute())
        if not self.tracking_uri:
            chosen = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.home / 'mlflow.db'}"
            object.__setattr__(self, "tracking_uri", chosen)
        return self

    def ceiling(self, norm: str, values: int) -> float:
        """Largest epsilon that a run may be asked for, for a norm and the number of values in one input."""
        return self.epsilon_ceiling if norm == "Linf" else max(self.l2_ceiling * math.sqrt(values), self.epsilon_floor)


def load_settings(arguments: list[str] | None = None, **values) -> Settings:
    """Settings from the environment, overridden by command-line `arguments`, overridden by `values`.

    Raises:
        InvalidInput: naming each setting that is wrong and what it should be.
        SystemExit: after --help, or with 2 for an unknown option.
    """
    try:
        return Settings(_cli_parse_args=arguments if arguments is not None else False, **values)
    except ValidationError as error:
        raise InvalidInput("; ".join(_explain(fault) for fault in error.errors())) from None
    except ValueError as error:   # pydantic-settings' own, for a list that is not JSON
        raise InvalidInput(f'{error}: write a JSON list such as ["python", "-m", "pipelines.retrain"]') from None


def explain(fault) -> str:
    """What is wrong with one setting's value."""
    if fault["type"] == "bool_parsing":
        return "should be true or false"
    if fault["type"] == "string_pattern_mismatch":   # the expression is for the machine, the description for people
        return f"should be {Settings.model_fields[fault['loc'][-1]].description}"
    return fault["msg"].removeprefix("Value error, ")


def _explain(fault) -> str:
    name, *inner = [str(part) for part in fault["loc"] if isinstance(part, str)] or [""]
    message = explain(fault)
    if name == "models":   # what it holds is not repeated: a secret may be in it
        return ": ".join(["REDOUBT_MODELS", *inner, message])
    return f"REDOUBT_{name.upper()}={fault['input']!r}: {message}" if name else message
