"""The settings of each of several models: those of the server, but for what REDOUBT_MODELS says of that model."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from redoubt.errors import InvalidInput
from serving.settings import Settings, explain

# One process has one of these, or they follow from the model's name. Whatever is not here may differ.
OF_THE_PROCESS = frozenset({
    "models", "model_name", "home", "host", "port", "tls_cert", "tls_key", "max_connections", "drain_seconds",
    "threads", "keys_file", "trusted_proxy", "proxies", "oidc_issuer", "oidc_audience", "oidc_roles_claim",
    "rate_limit", "rate_burst", "log_format", "access_log", "traces", "ledger", "launcher", "namespace", "ledger_name",
    "replica", "pod_uid", "lease_seconds", "run_tracking_uri", "kfp_endpoint", "kfp_namespace", "kfp_pipeline",
    "kfp_version", "kfp_experiment", "kfp_service_account", "kfp_token_file", "kfp_ca_file", "kfp_poll_seconds",
})
OF_A_MODEL = tuple(sorted(Settings.model_fields.keys() - OF_THE_PROCESS))


class _Given(Settings):
    """Settings that read neither the environment nor the command line: the server's have done so."""

    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, **_):
        return (init_settings,)


def per_model(settings: Settings) -> dict[str, Settings]:
    """The settings of every model in `settings.models`, by name; each has a home of its own below the server's.

    Raises:
        InvalidInput: naming the model and the setting that is unknown, wrong, or not a model's to choose; and where
            replicas share a ledger.
    """
    if settings.ledger != "sqlite":
        raise InvalidInput("REDOUBT_MODELS is for one server alone: where replicas share a ledger, run one Deployment "
                           "a model, each with its own REDOUBT_MODEL_NAME")
    return {name: _own(settings, name, changes) for name, changes in settings.models.items()}


def _own(settings: Settings, name: str, changes: dict[str, Any]) -> Settings:
    for key in changes:
        if key not in OF_A_MODEL:
            fault = "belongs to the whole server" if key in OF_THE_PROCESS else "is no setting"
            raise InvalidInput(f"REDOUBT_MODELS: {name}: {key!r} {fault}: a model may set {', '.join(OF_A_MODEL)}")
    shared = {key: getattr(settings, key) for key in Settings.model_fields}
    try:
        return _Given(**shared | changes | {"models": {}, "model_name": name, "home": settings.home / name})
    except ValidationError as error:
        faults = "; ".join(_explain(fault) for fault in error.errors())
        raise InvalidInput(f"REDOUBT_MODELS: {name}: {faults}") from None


def _explain(fault) -> str:
    message = explain(fault)
    return f"{fault['loc'][0]}={fault['input']!r}: {message}" if fault["loc"] else message
