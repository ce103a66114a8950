"""An infer request is answered: named tensors as JSON, or as JSON followed by raw bytes; and the model's card."""

from __future__ import annotations

import numpy as np
from pydantic_core import to_json

from redoubt.bundle import Bundle
from serving.protocol.names import ALWAYS, DATATYPES, DETAILS, INPUT, OUTPUTS, RAW, VERDICT
from serving.protocol.request import InferRequest, Wanted


def visible(outputs: dict[str, np.ndarray], detail: str) -> dict[str, np.ndarray]:
    """What of `outputs` a client is told.

    Args:
        outputs: name to values, first dimension N.
        detail: one of `DETAILS`. `rounded` leaves `instance_score` and `attack_probability` one decimal, strengths one
            digit, as float64: JSON would write the float32 next to 0.1 as 0.10000000149011612.
    """
    if detail == "exact":
        return outputs
    shown = {name: values for name, values in outputs.items() if name in ALWAYS or name in DETAILS[detail]}
    for name in ("instance_score", "attack_probability"):
        if name in shown:
            shown[name] = shown[name].astype(np.float64).round(1)
    for name in ("strength", "strength_interval"):
        if name in shown:
            shown[name] = _one_digit(shown[name])
    return shown


def _one_digit(values: np.ndarray) -> np.ndarray:
    step = 10 ** np.floor(np.log10(np.maximum(values.astype(np.float64), 1e-6)))
    return (np.round(values / step) * step).round(6)   # the smallest step; 3 * 0.1 is not 0.3


def encode(
    outputs: dict[str, np.ndarray], request: InferRequest, *, model_name: str, version: str, request_id: str = ""
) -> tuple[bytes, int | None]:
    """The answer to `request`: its body, and the length of the JSON at its beginning when raw bytes follow.

    Args:
        outputs: output name to values, first dimension N; verdicts may be absent.
        request_id: the answer's id where the caller gave none.
    """
    wanted = request.outputs or tuple(Wanted(name, request.binary) for name in outputs)
    message = {"model_name": model_name, "model_version": version}
    if request.id or request_id:
        message["id"] = request.id or request_id
    message["outputs"], raw = [], []
    for output in wanted:
        if output.name not in outputs:
            continue
        values, datatype = outputs[output.name], OUTPUTS[output.name][0]
        tensor = {"name": output.name, "datatype": datatype, "shape": list(values.shape)}
        if output.binary:
            raw.append(np.ascontiguousarray(values, RAW[datatype]).tobytes())
            tensor["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            tensor["data"] = values.ravel().tolist()
        message["outputs"].append(tensor)
    text = to_json(message)
    return (b"".join([text, *raw]), len(text)) if raw else (text, None)


def metadata(bundle: Bundle, *, model_name: str, versions: list[str], detail: str = "exact") -> dict:
    """What a client needs to know to call the model: names, datatypes, shapes (-1 is the batch), classes."""
    channels, height, width = bundle.architecture.input_shape
    shown = {name: VERDICT[name] for name in DETAILS[detail]} if bundle.has_detector else {}
    classes = len(bundle.classes)
    return {
        "name": model_name,
        "versions": versions,
        "platform": "redoubt_torch",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, channels, height, width]}],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [classes if size is None else size for size in shape]}
            for name, (datatype, shape) in (ALWAYS | shown).items()
        ],
        "parameters": {
            "classes": bundle.classes, "architecture": bundle.architecture.name, "datatypes": list(DATATYPES),
        },
    }
