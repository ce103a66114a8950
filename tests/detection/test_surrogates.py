"""Stand-ins: they answer as the model does, and attacks on them go other ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from redoubt.attacks.gradient import input_gradient
from redoubt.detection.surrogates import fit_surrogates


def test_stand_ins_answer_as_the_model_and_differ_in_their_gradients(digits, digits_model):
    x, y = digits.tensors("train")   # of few pictures they learn less
    state = torch.get_rng_state()
    nets, again = (fit_surrogates(digits_model, x, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and len(nets) == 2
    test = digits.tensors("test")[0]
    for net, other in zip(nets, again, strict=True):
        assert (net(test).argmax(1) == digits_model(test).argmax(1)).float().mean() > 0.85
        assert torch.equal(net(test), other(test))
        assert not net.training and not any(weight.requires_grad for weight in net.parameters())
    one, two = (input_gradient(net, x, y).flatten(1) for net in nets)
    assert F.cosine_similarity(one, two).mean() < 0.9
