"""A drill's result as a successful run gives it, an evaluation's report, and a strict reader of pages."""

from html.parser import HTMLParser

import numpy as np
import pytest

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Reads a page and fails on what is not closed, not unique or not inside the file."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.words, self.images = [], [], [], 0
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        assert len(self.ids) == len(set(self.ids)), "an id comes twice"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "iframe"), tag
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), name
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("data:image/png;base64,", "#")), value
        if tag == "img":
            self.images += 1
            assert dict(attributes)["alt"]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


@pytest.fixture(scope="session")
def read_page():
    def read(path):
        text = path.read_text(encoding="utf-8")
        assert "@import" not in text
        return Page(text)

    return read


@pytest.fixture
def drill():
    rng = np.random.default_rng(0)
    clean = rng.random((10, 1, 8, 8))
    times = np.arange(0, 60, 0.5)
    return {
        "dataset": "digits", "attack": "fgsm", "norm": "Linf", "epsilon_true": 0.1, "seed": 3, "hardware": "2 cores",
        "started": "2026-01-01 12:00:00", "outcome": "recovered", "failure": None,
        "stages": [{"name": "serve", "seconds": 2.5, "status": "ok", "detail": "version 1"}],
        "strength": {"estimate": 0.104, "low": 0.098, "high": 0.109, "matched": 0.11},
        "requests_until_alarm": 61, "seconds_alarm_to_swap": 38.4, "total_requests": 18231, "failed_requests": 0,
        "retrains": 1, "clean_false_alarms": 0,
        "accuracy": {"before": {"clean": 0.912, "replayed": 0.081, "fgsm": 0.08, "pgd20": 0.003},
                     "after": {"clean": 0.851, "replayed": 0.83, "fgsm": 0.76, "pgd20": 0.724},
                     "oracle": {"clean": 0.855, "fgsm": 0.765, "pgd20": 0.731}},
        "timeline": [{"t": float(t), "requests": int(10 * t), "flagged_share": 0.6 if t > 10 else 0.01,
                      "statistic": min(40.0, max(0.0, t - 10)), "threshold": 18.4} for t in times],
        "events": [{"t": 10.0, "name": "attack begins"}, {"t": 28.5, "name": "alarm"}, {"t": 29.0, "name": "retrain"}],
        "examples": {"clean": clean.tolist(), "adversarial": (clean + 0.1).clip(0, 1)},
    }


@pytest.fixture(scope="session")
def evaluation():
    def row(attack, label, epsilon, accuracy):
        return {"attack": attack, "label": label, "norm": "Linf", "epsilon": epsilon, "n": 300, "accuracy": accuracy,
                "low": accuracy - 0.03, "high": accuracy + 0.03}

    rows = [row("fgsm", "FGSM", e, 0.96 - 2 * e) for e in (0.0, 0.05, 0.1)]
    rows += [row("pgd", "PGD-20", e, 0.96 - 3 * e) for e in (0.0, 0.05, 0.1)]
    share = {"n": 100, "accuracy": 0.9, "low": 0.85, "high": 0.95}
    per_class = [{"class": name, **share} for name in ("cat", "dog", "emu")]
    return {"n": 300, "clean_accuracy": 0.96, "clean_low": 0.93, "clean_high": 0.98, "per_class": per_class,
            "worst_class": per_class[1], "confusion": [[90, 10, 0], [5, 90, 5], [0, 10, 90]], "attacks": rows,
            "robust": [rows[-1]], "threats": [["Linf", 0.1]], "levels": 255, "seed": 0, "seconds": 3.0}


@pytest.fixture(scope="session")
def shown():
    rng = np.random.default_rng(0)
    return [{**{name: rng.random((3, 8, 8)) for name in ("clean", "perturbation", "adversarial")},
             "amplified": 5.0, "label": "cat", "predicted": "cat", "confidence": 0.9, "predicted_adversarial": wrong,
             "confidence_adversarial": 0.6, "attack": "PGD-20", "norm": "Linf", "epsilon": 0.1}
            for wrong in ("dog", "cat")]


@pytest.fixture(scope="session")
def full_evaluation(evaluation):
    """The evaluation with every part that the pipeline's report has."""
    share = {"n": 500, "accuracy": 0.8, "low": 0.76, "high": 0.84}
    spread = {"mean": 0.9, "low": 0.85, "high": 0.95}
    bins = [{"low": i / 5, "high": (i + 1) / 5, "n": 60 if i else 0, "confidence": (i + 0.5) / 5 if i else None,
             "accuracy": (i + 0.4) / 5 if i else None} for i in range(5)]
    verdicts = {"falls_with_epsilon": "pass", "converged": "pass", "few_classes": "not applicable"}
    checks = [{"check": name, "title": f"About {name}", "verdict": verdict, "detail": "128 images", "numbers": {}}
              for name, verdict in verdicts.items()]
    return evaluation | {
        "format": 2, "suite": "quick", "checks": checks, "defended": True, "split": "test", "shape": [1, 8, 8],
        "worst_case": [{"norm": "Linf", "epsilon": 0.1, **share, "attacks": ["FGSM", "PGD-20"],
                        "per_class": evaluation["per_class"], "worst_class": evaluation["worst_class"]}],
        "calibration": {"n": 300, "ece": 0.031, "mean_confidence": 0.91, "accuracy": 0.96, "brier": 0.1, "nll": 0.3,
                        "bins": bins},
        "corruptions": {"n": 500, "mean": 0.7, "rows": [
            {"corruption": kind, "severity": severity, "amount": 1.0, **share} for kind in ("noise", "jpeg")
            for severity in range(1, 6)]},
        "imperceptibility": {"attack": "pgd", "label": "PGD-20", "norm": "Linf", "epsilon": 0.1, "n": 100,
                             "ssim": spread, "l2": spread, "linf": spread},
        "cost": [{"attack": "pgd", "label": "PGD-20", "norm": "Linf", "epsilon": 0.1, "n": 300, "seconds": 2.0,
                  "images_per_second": 150.0},
                 {"attack": "checks", "label": "sanity checks", "norm": "", "epsilon": 0.0, "n": 128, "seconds": 1.0,
                  "images_per_second": 128.0}],
        "training": {"seconds": 60.0, "epochs": 4, "pictures": 50000, "standard_epoch_seconds": 3.0,
                     "times_standard": 5.0},
        "hardware": "2 x CPU", "dataset": "digits", "twins_left_out": 2, "data_checksum": "ab" * 32,
        "model": {"architecture": "compact-cnn", "weights_sha256": "0" * 64, "parameters": 55_000},
    }
