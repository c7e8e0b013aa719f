"""Rotations (roma)."""

from __future__ import annotations

import torch

from ..builders import Program
from .training import expected, library, report_of, told

roma = library("roma")


def test_rotations_that_are_half_a_turn_apart() -> None:
    """naver/roma#9 "Network produces NaN values as output when using geodesic loss as rotation matrices".

    Half a turn is the edge of asin: the distance is pi, its derivative infinite.
    """
    poses = torch.eye(3).double().repeat(2, 1, 1)
    poses[1, [1, 2], [1, 2]] = -1.0
    model = Program(lambda w, i: w[i], poses)
    quarter = roma.rotvec_to_rotmat(torch.tensor([torch.pi / 2, 0.0, 0.0]))

    report = report_of(
        model,
        lambda batch: roma.rotmat_geodesic_distance(model(batch[0]), batch[1]),
        [(0, quarter), (1, torch.eye(3).double())],
    )

    assert told(report) == expected(
        step=1,
        phase="backward",
        op="asin",
        module=None,
        file="roma/utils.py",
        code="return 2.0 * torch.asin(torch.clamp_max(torch.norm(R2 - R1, dim=[-1, -2]) * _ONE_OVER_2SQRT2, clamping))",
        cause="singular-gradient",
    )
    assert report.origin.autograd_node == "AsinBackward0"
