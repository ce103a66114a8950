"""Shapes of requests and answers, for the OpenAPI document. Infer requests are read by `serving.protocol` itself."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from serving.protocol.names import DATATYPES, INPUT, OUTPUTS


class Problem(BaseModel):
    """An error, in the protocol's form."""

    error: str


class ServerLive(BaseModel):
    live: bool


class ServerReady(BaseModel):
    ready: bool


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict


class ModelReady(BaseModel):
    name: str
    ready: bool


def _problem(text: str) -> dict:
    return {"model": Problem, "description": text}


# The same everywhere: FastAPI would otherwise promise its own 422, which never comes.
PROBLEMS = {
    400: _problem("The request cannot be used; the text says what would be right"),
    401: _problem("No valid key or token"),
    403: _problem("Not allowed, or a flagged input was blocked"),
    404: _problem("No such model, version or path"),
    405: _problem("Not with this method"),
    503: _problem("No model is ready"),
}
BODY_PROBLEMS = PROBLEMS | {
    408: _problem("The body did not come in time"),
    413: _problem("Over a size limit"),
    415: _problem("A compressed body"),
    429: _problem("No room now: see the header Retry-After"),
    504: _problem("The request's time ran out"),
}

_PARAMETERS = {"type": "object", "additionalProperties": True}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string", "enum": [INPUT]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 4, "maxItems": 4},
        "datatype": {"type": "string", "enum": list(DATATYPES)},
        "parameters": _PARAMETERS,
        "data": {
            "type": "array",
            "items": {"anyOf": [{"type": "number"}, {"type": "array", "items": {}}]},
            "description": "Pixels in row-major order, flat or nested: FP32 in [0, 1], UINT8 from 0 to 255. Absent "
                           "when `parameters.binary_data_size` says how many raw bytes follow the JSON.",
        },
    },
}
INFER_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "maxLength": 512},
        "parameters": _PARAMETERS | {
            "description": "`timeout` in microseconds; `binary_data_output` for answers as raw bytes",
        },
        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1, "maxItems": 1},
        "outputs": {
            "type": "array",
            "maxItems": len(OUTPUTS),
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string", "enum": list(OUTPUTS)}, "parameters": _PARAMETERS},
            },
        },
    },
}
INFER_RESPONSE = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": {"type": "string"}, "datatype": {"type": "string"},
                    "shape": {"type": "array", "items": {"type": "integer"}},
                    "data": {"type": "array", "items": {}}, "parameters": _PARAMETERS,
                },
            },
        },
    },
}
_RAW = {"schema": {"type": "string", "format": "binary"}}
INFER_DOCUMENT = {
    "parameters": [{
        "name": "Inference-Header-Content-Length", "in": "header", "required": False,
        "schema": {"type": "integer", "minimum": 1},
        "description": "Bytes of JSON at the beginning of the body, when binary tensors follow",
    }],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": INFER_REQUEST}, "application/octet-stream": _RAW},
    },
}
INFER_ANSWERS = BODY_PROBLEMS | {
    200: {
        "description": "Named outputs",
        "content": {"application/json": {"schema": INFER_RESPONSE}, "application/octet-stream": _RAW},
    },
}
IMAGE_DOCUMENT = {
    "requestBody": {
        "required": True,
        "content": {
            "image/png": _RAW, "image/jpeg": _RAW,
            "multipart/form-data": {"schema": {
                "type": "object", "required": ["file"], "properties": {"file": _RAW["schema"]},
            }},
        },
    },
}
IMAGE_ANSWERS = BODY_PROBLEMS | {
    200: {"description": "Label and verdict", "content": {"application/json": {"schema": {"type": "object"}}}},
}
