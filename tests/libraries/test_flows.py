"""Normalizing flows (nflows, normflows)."""

from __future__ import annotations

import torch

from .training import expected, library, report_of, told

flows = library("nflows.flows")
transforms = library("nflows.transforms")
distributions = library("nflows.distributions")
normflows = library("normflows")


def test_a_tanh_that_saturates() -> None:
    """didriknielsen/survae_flows#12 "Fixes periodic -inf log det Jacobians in Tanh.foward()".

    nflows writes the same log(1 - tanh(x)**2). `log_prob` is a method: the entry call is the transform.
    """
    model = flows.Flow(
        transforms.CompositeTransform(
            [transforms.MaskedAffineAutoregressiveTransform(features=2, hidden_features=4), transforms.Tanh()]
        ),
        distributions.StandardNormal([2]),
    )

    report = report_of(model, lambda x: -model.log_prob(x).mean(), [torch.randn(4, 2), torch.full((4, 2), 1e3)])

    assert told(report) == expected(
        step=1,
        phase="forward",
        op="log",
        module="_transform._transforms.1",
        file="nflows/transforms/nonlinearities.py",
        code="logabsdet = torch.log(1 - outputs ** 2)",
        cause="log-domain",
    )


def test_a_scale_that_overflows_in_the_inverse() -> None:
    """andreas128/SRFlow#2 'Meet "NaN" Problem.': an affine coupling that divides by a scale too small.

    normflows calls `inverse`, never the module: all but the parameter net is code of the loss.
    """
    net = normflows.nets.MLP([1, 8, 2], init_zeros=True)
    with torch.no_grad():
        list(net.parameters())[-1][1] = -100.0
    model = normflows.NormalizingFlow(
        normflows.distributions.DiagGaussian(2), [normflows.flows.AffineCouplingBlock(net)]
    )

    report = report_of(model, model.forward_kld, [torch.randn(4, 2)])

    assert told(report) == expected(
        phase="loss",
        op="exp",
        module=None,
        file="normflows/flows/affine/coupling.py",
        code="z2 = (z2 - shift) * torch.exp(-scale_)",
        cause="overflow",
    )
