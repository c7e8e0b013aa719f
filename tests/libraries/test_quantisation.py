"""Vector quantisation (vector_quantize_pytorch)."""

from __future__ import annotations

import torch

from .training import expected, library, report_of, told

quantisation = library("vector_quantize_pytorch")


def test_a_batch_of_padding_alone() -> None:
    """lucidrains/vector-quantize-pytorch#196 "loss nan when using ResidualLFQ".

    That report has no cause; a batch that is masked out altogether still gives NaN: the mean entropy of nothing.
    """
    model = quantisation.LFQ(dim=4, codebook_size=8)
    x = torch.randn(2, 5, 4)

    report = report_of(
        model,
        lambda mask: model(x, mask=mask).entropy_aux_loss,
        [torch.ones(2, 5, dtype=torch.bool), torch.zeros(2, 5, dtype=torch.bool)],
    )

    assert told(report) == expected(
        step=1,
        phase="forward",
        op="mean",
        module="",
        file="vector_quantize_pytorch/lookup_free_quantization.py",
        code="per_sample_entropy = entropy(per_sample_probs).mean()",
        cause="empty-reduction",
    )
