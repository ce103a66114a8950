"""Prometheus metrics. Counters move as things happen; what has a present value is read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.records import FINISHED, OUTCOMES

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_INPUTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_EPSILONS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 1.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Requests:
    """Answers by status code, in a registry of their own: all that is counted where no model is behind them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter("redoubt_requests", "Requests by status code", ["code"], registry=self.registry)

    def request(self, code: int, seconds: float | None = None) -> None:
        """Count one answered request; `seconds` of an inference request."""
        self._requests.labels(str(code)).inc()


class Metrics(Requests, Collector):
    """A model's instruments, in a registry of their own. Safe to use from every thread.

    Args:
        present: what holds now: {queue_depth, statistic, threshold, campaign_active, champion: (version, epsilon),
            faults: names}; None or absent values are left out.
    """

    def __init__(self, present: Callable[[], dict]):
        super().__init__()
        self._present, registry = present, self.registry
        self._seconds = Histogram(
            "redoubt_request_seconds", "Inference requests, from arrival to answer", registry=registry,
            buckets=_SECONDS,
        )
        self._batch = Histogram(
            "redoubt_batch_size", "Inputs computed at a time", registry=registry, buckets=_INPUTS
        )
        self._compute = Histogram(
            "redoubt_compute_seconds", "Computing one batch", registry=registry, buckets=_SECONDS
        )
        self._verdicts = Counter("redoubt_verdicts", "Inputs by verdict", ["verdict"], registry=registry)
        self._strength = Histogram(
            "redoubt_strength", "Estimated epsilon of flagged inputs", registry=registry, buckets=_EPSILONS
        )
        # Of a shared ledger every replica counts everything: whoever is asked, no event is missed.
        self.campaigns = Counter("redoubt_campaigns", "Closed campaigns", ["outcome"], registry=registry)
        self.retrains = Counter("redoubt_retrains", "Finished retraining requests", ["outcome"], registry=registry)
        self.swap = Histogram(
            "redoubt_swap_seconds", "From seeing a new champion to answering with it", registry=registry,
            buckets=_SECONDS,
        )
        self.rollbacks = Counter(
            "redoubt_rollbacks", "New champions that this server rolled back by itself", registry=registry
        )
        self.events = Counter("redoubt_events", "Events for the webhook", ["result"], registry=registry)
        self.feedback = Counter("redoubt_feedback", "Labels that came back", ["result"], registry=registry)
        self._challenger = Counter(
            "redoubt_challenger_inputs", "Inputs that the challenger computed, too, by whether both decided alike",
            ["classes", "verdicts"], registry=registry,
        )
        self.quarantined = Counter(
            "redoubt_quarantined", "Flagged inputs kept or dropped", ["result"], registry=registry
        )
        for counter, values in ((self.campaigns, OUTCOMES), (self.retrains, FINISHED),
                                (self._verdicts, ("clean", "adversarial", "none"))):
            for value in values:   # to Prometheus a series that begins at 1 has not increased: no alert for the first
                counter.labels(value)
        registry.register(self)

    def request(self, code: int, seconds: float | None = None) -> None:
        super().request(code)
        if seconds is not None:
            self._seconds.observe(seconds)

    def compared(self, classes: str, verdicts: str, inputs: int) -> None:
        """Count inputs that champion and challenger decided on: `same` or `different`, verdicts also `none`."""
        self._challenger.labels(classes, verdicts).inc(inputs)

    def batch(self, inputs: int, seconds: float, flags: np.ndarray | None, strengths: np.ndarray | None) -> None:
        """Count one computed batch; flags and strengths are [N], or None without a detector."""
        self._batch.observe(inputs)
        self._compute.observe(seconds)
        if flags is None:
            self._verdicts.labels("none").inc(inputs)
            return
        flagged = int(flags.sum())
        if flagged < inputs:
            self._verdicts.labels("clean").inc(inputs - flagged)
        if flagged:
            self._verdicts.labels("adversarial").inc(flagged)
            for strength in strengths[flags].tolist():
                self._strength.observe(strength)

    def describe(self) -> Iterable:
        return []   # registering must not read values from a server that is still being put together

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """What holds now."""
        now = self._present()
        for name, text in (
            ("queue_depth", "Inputs that wait for a computing thread"),
            ("in_flight", "Inference requests between arrival and answer"),
            ("monitor_statistic", "Logarithm of the monitor's statistic"),
            ("monitor_threshold", "Logarithm at which the alarm is due"),
            ("accuracy_statistic", "Logarithm of the statistic of labelled accuracy"),
            ("campaign_active", "1 while a campaign is open"),
            ("ready", "1 while a model answers"),
        ):
            if now.get(name) is not None:
                yield GaugeMetricFamily(f"redoubt_{name}", text, value=float(now[name]))
        info = GaugeMetricFamily("redoubt_champion_info", "The version that answers", labels=["version", "epsilon"])
        if now.get("champion"):
            info.add_metric([str(part) for part in now["champion"]], 1)
        yield info
        faults = GaugeMetricFamily("redoubt_fault", "1 for each part that is at fault now", labels=["kind"])
        for kind in now.get("faults", ()):
            faults.add_metric([kind], 1)
        yield faults


def render(instruments: Mapping[str, Requests]) -> bytes:
    """The text that Prometheus reads.

    Args:
        instruments: by model name, which each sample carries as the label `model`; with none where the name is empty.
    """
    return generate_latest(_Together(instruments))


class _Together(Collector):
    """Families of one name become one family."""

    def __init__(self, instruments: Mapping[str, Requests]):
        self._instruments = instruments

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for model, one in self._instruments.items():
            label = {"model": model} if model else {}
            for family in one.registry.collect():
                whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                whole.samples += [sample._replace(labels=label | sample.labels) for sample in family.samples]
        return families.values()
