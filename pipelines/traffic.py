"""Traffic for a served model: a small Open Inference Protocol client, and adversarial pictures for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import torch
from torch import Tensor, nn

from redoubt.attacks import get_attack, on_lattice
from redoubt.errors import RedoubtError
from redoubt.threat import ThreatModel


@dataclass
class Answers:
    """What the server said to one request; every field is [N]."""

    labels: Tensor
    flagged: Tensor
    strength: Tensor
    version: str


class Served:
    """A served model, seen from outside.

    Args:
        url: such as http://127.0.0.1:8080.
        model: the model's name in the URL.
        api_key: sent as a bearer token when given.

    Attributes:
        sent, failed: requests so far, and those that got no answer or none with status 200.
    """

    def __init__(self, url: str, model: str, *, api_key: str = "", timeout: float = 30.0):
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url, self.model, self.sent, self.failed, self.last_error = url.rstrip("/"), model, 0, 0, ""
        self._client = httpx.Client(base_url=self.url, timeout=timeout, headers=headers)

    def close(self) -> None:
        self._client.close()

    def infer(self, x: Tensor) -> Answers | None:
        """Send pictures [N, C, H, W] as one request. None when the request failed; the failure is counted."""
        body = {"inputs": [{"name": "input", "shape": list(x.shape), "datatype": "FP32",
                            "data": [round(v, 6) for v in x.flatten().tolist()]}]}
        self.sent += 1
        try:
            answer = self._client.post(f"/v2/models/{self.model}/infer", json=body)
            answer.raise_for_status()
            return _read(answer.json(), len(x))
        except (httpx.HTTPError, KeyError, ValueError) as error:
            self.failed += 1
            detail = error.response.text[:200] if isinstance(error, httpx.HTTPStatusError) else ""
            self.last_error = f"{type(error).__name__}: {error} {detail}".strip()
            return None

    def send_each(self, x: Tensor, *, connections: int = 4) -> list[Answers | None]:
        """Send each picture as a request of its own, a few at a time, and return the answers in order."""
        with ThreadPoolExecutor(connections) as pool:
            return list(pool.map(lambda i: self.infer(x[i : i + 1]), range(len(x))))

    def status(self) -> dict:
        """The server's own account of itself.

        Raises:
            RedoubtError: when it does not answer.
        """
        try:
            answer = self._client.get("/status")
            answer.raise_for_status()
            return answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise RedoubtError(f"no status from {self.url}: {error}") from None

    def is_ready(self) -> bool:
        try:
            return self._client.get("/v2/health/ready").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False


def _read(body: dict, n: int) -> Answers:
    outputs = {output["name"]: output["data"] for output in body["outputs"]}
    nothing = [0.0] * n
    return Answers(
        labels=torch.tensor(outputs["label"]).flatten(),
        flagged=torch.tensor(outputs.get("is_adversarial", nothing), dtype=torch.bool).flatten(),
        strength=torch.tensor([s if s is not None else 0.0 for s in outputs.get("strength", nothing)]).flatten(),
        version=str(body.get("model_version", "")),
    )


def accuracy_of(answers: list[Answers | None], y: Tensor) -> float:
    """The share of right answers; a request without an answer is not right."""
    said = torch.cat([a.labels if a else torch.tensor([-1]) for a in answers])
    return float((said == y[: len(said)]).float().mean())


def adversarial(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, name: str, *, levels: int, seed: int
) -> Tensor:
    """White-box adversarial pictures, rounded to the data's lattice as an uploaded picture would be."""
    attack, generator = get_attack(name), torch.Generator().manual_seed(seed)
    parts = [attack(model, x[i : i + 128], y[i : i + 128], threat, generator=generator) for i in range(0, len(x), 128)]
    return on_lattice(torch.cat(parts), levels)
