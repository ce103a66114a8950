"""The benchmark's model for MLServer: the same weights and threads as ours, no detection."""

import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from redoubt.bundle import open_bundle


class Peer(MLModel):
    async def load(self) -> bool:
        torch.set_num_threads(1)
        self.net = open_bundle(self.settings.parameters.uri).model().requires_grad_(False)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = torch.from_numpy(NumpyCodec.decode_input(payload.inputs[0]).astype("float32", copy=False))
        with torch.inference_mode():
            probabilities = self.net(x).softmax(1)
        outputs = [
            NumpyCodec.encode_output("label", probabilities.argmax(1).numpy()),
            NumpyCodec.encode_output("probabilities", probabilities.numpy()),
        ]
        return InferenceResponse(model_name=self.name, model_version="1", outputs=outputs)
