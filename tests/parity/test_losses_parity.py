"""Every loss against the values and gradients that the authors' training code gave on fixed logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dualtail.logits.losses import build_loss
from dualtail.logits.prior import LabelPrior

DATA = load_file(Path(__file__).parent / "data" / "losses.safetensors")
TUNERS = sorted({name.split("/")[0] for name in DATA})

# The reference is float32; re-computing it from the same logits met 1e-6. 1e-4 is the tolerance of the files.
TOLERANCE = 1e-4

# The reference's name -> ours, and the options that make it so. Its "factor" scales the adjusted logits; it adds
# 1e-9 before it takes logs, which is far below the tolerance.
LOSSES = {
    "CE": ("ce", {}),
    "Focal": ("focal", {"gamma": 2.0}),
    "LDAM": ("ldam", {"max_margin": 0.5, "scale": 25.0}),
    "CB": ("class_balanced", {"beta": 0.9999}),
    "GRW": ("generalized_reweight", {"power": 1.0}),
    "BS": ("balanced_softmax", {}),
    "LA": ("la", {}),
    "LA_tau2": ("la", {"tau": 2.0}),
    "LA_factor05": ("la", {"scale": 0.5}),
    "LA_prior": ("la", {"source_prior": "pretrain"}),
    "LADE": ("lade", {"weight": 0.1, "regularization": 0.1}),
    "MultiExpert": ("gla_train", {}),
    # VS is not in the reference; without its multiplier it is LA.
    "LA (VS, gamma 0)": ("vs", {"gamma": 0.0}),
}


def test_all_eight_files_and_all_their_losses_are_covered():
    assert len(TUNERS) == 8
    for tuner in TUNERS:
        stored = {name.split("loss.")[1] for name in DATA if name.startswith(f"{tuner}/loss.")}
        assert stored == {name.split(" ")[0] for name in LOSSES}


@pytest.mark.parametrize("reference", LOSSES)
@pytest.mark.parametrize("tuner", TUNERS)
def test_value_and_gradient(tuner, reference):
    name, options = LOSSES[reference]
    reference = reference.split(" ")[0]
    pretrain_prior = LabelPrior(DATA[f"{tuner}/in.pretrain_prior"].log())
    if options.get("source_prior") == "pretrain":
        options = {"source_prior": pretrain_prior}
    loss = build_loss(name, counts=DATA[f"{tuner}/in.cls_num_list"], pretrain_prior=pretrain_prior, **options)
    logits = DATA[f"{tuner}/out.logits"].clone().requires_grad_()
    value = loss(logits, DATA[f"{tuner}/in.label"])
    (gradient,) = torch.autograd.grad(value, logits)
    expected = DATA[f"{tuner}/dlogits.{reference}"]
    torch.testing.assert_close(value.detach(), DATA[f"{tuner}/loss.{reference}"], rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))
