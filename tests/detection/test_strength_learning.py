"""What strength is learned from, and what its bounds are taken from."""

from __future__ import annotations

from dataclasses import replace

import torch

from redoubt.detection import fit, strength_learning
from redoubt.detection.rehearsal import TELLING
from redoubt.detection.strength import HARMLESS


def test_drawn_attacks_teach_and_bound_nothing_and_every_usable_input_was_seen(
        digits, digits_model, small, monkeypatch):
    given = {}
    for name in ("fit_strength", "calibrate"):
        def noting(net, blocks, *others, name=name, real=getattr(strength_learning, name), **more):
            given[name] = blocks
            return real(net, blocks, *others, **more)

        monkeypatch.setattr(strength_learning, name, noting)
    config = replace(small, blocks=100, score_steps=60, strength_steps=20, moved=1, drawn=20)
    detector = fit(
        digits_model, digits.tensors("detector_fit"), digits.tensors("calibration"), levels=16, config=config)
    learned, bounding = given["fit_strength"], given["calibrate"]   # of its two calls the last, which widens
    assert len(learned.norm) - len(bounding.norm) == config.drawn
    assert detector.settings.fitted["blocks"] == len(bounding.norm)
    assert learned.inputs.shape[1] == 2 * config.block_size
    assert (learned.inputs[learned.usable].abs().amax(1) > 0).all()   # none was left as it was made
    attacks = bounding.head(config.blocks + config.blocks // 3)   # Linf and L2
    drawn, harmless = learned.tail(config.drawn), bounding.tail(len(bounding.norm) - len(attacks.norm))
    assert len(harmless.norm) > 0 and (harmless.norm == HARMLESS).all() and harmless.usable.all()
    assert (drawn.norm == 0).all() and (drawn.log_epsilon < 0).all() and drawn.usable.any()
    assert (attacks.norm != HARMLESS).all() and (attacks.log_epsilon < 0).any()
    as_seen, moved = attacks.usable.split(config.block_size, 1)
    inputs, elsewhere = attacks.inputs.split(config.block_size, 1)
    assert as_seen.any() and moved.any() and not torch.equal(inputs, elsewhere)
    assert not attacks.usable[attacks.kind >= TELLING].any()
