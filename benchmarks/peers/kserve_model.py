"""The benchmark's model for KServe's Python server: the same weights and threads as ours, no detection."""

import argparse

import torch
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server

from redoubt.bundle import open_bundle


class Peer(Model):
    def __init__(self, name: str, folder: str):
        super().__init__(name)
        torch.set_num_threads(1)
        self.net = open_bundle(folder).model().requires_grad_(False)
        self.ready = True

    def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        one: InferInput = payload.inputs[0]
        x = torch.from_numpy(one.as_numpy().astype("float32"))
        with torch.inference_mode():
            probabilities = self.net(x).softmax(1)
        binary = bool((payload.parameters or {}).get("binary_data_output"))
        outputs = []
        for name, values, datatype in (
            ("label", probabilities.argmax(1).numpy(), "INT64"), ("probabilities", probabilities.numpy(), "FP32"),
        ):
            output = InferOutput(name, list(values.shape), datatype)
            output.set_data_from_numpy(values, binary_data=binary)
            outputs.append(output)
        return InferResponse(payload.id or "", self.name, outputs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--model_dir")
    arguments, _ = parser.parse_known_args()
    ModelServer(workers=1).start([Peer(arguments.model_name, arguments.model_dir)])
