"""Open Inference Protocol v2: what comes in becomes a tensor of pixels, what goes out becomes named tensors.

JSON and the binary tensor extension. Strict: whatever does not fit the model is refused with a sentence that says what
would. `names` holds the vocabulary, `pixels` reads data, `request` and `answer` the two messages.
"""

from serving.protocol.answer import encode, metadata, visible
from serving.protocol.names import ALWAYS, DETAILS, INPUT, VERDICT
from serving.protocol.request import InferRequest, Wanted, decode

__all__ = ["ALWAYS", "DETAILS", "INPUT", "VERDICT", "InferRequest", "Wanted", "decode", "encode", "metadata", "visible"]
