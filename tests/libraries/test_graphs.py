"""Graph nets (torch_geometric)."""

from __future__ import annotations

import torch
from torch import nn

from ..builders import kept
from .training import expected, library, report_of, told

pyg = library("torch_geometric.nn")
dense = library("torch_geometric.nn.dense")


def test_an_epsilon_that_half_precision_does_not_have() -> None:
    """pyg-team/pytorch_geometric#2106 "Make EPS adjustable to the precision (e.g., fp16)".

    `recon_loss` adds 1e-15 to a probability before the logarithm: nothing, in half precision.
    """
    model = pyg.GAE(nn.Linear(2, 2, bias=False).half())
    nn.init.eye_(model.encoder.weight)
    edges, others = torch.tensor([[0], [1]]), torch.tensor([[0], [0]])
    near = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).half()
    far = torch.tensor([[5.0, 0.0], [-5.0, 0.0]]).half()

    report = report_of(model, lambda x: model.recon_loss(model.encode(x), edges, others), [near, far])

    assert told(report) == expected(
        step=1,
        phase="loss",
        op="log",
        module=None,
        file="torch_geometric/nn/models/autoencoder.py",
        code="pos_loss = -torch.log(",
        cause="precision",
    )


def test_a_graph_without_edges() -> None:
    """pyg-team/pytorch_geometric#291 "issues on dense_diff_pool function": NaN where a node has no neighbours.

    Fixed for the layer of that report; `DMoNPooling` still divides by the number of edges.
    """
    model = dense.DMoNPooling([3, 4], k=2)
    x = torch.randn(1, 5, 3)

    report = report_of(
        model,
        lambda adjacency: sum(model(x, adjacency)[3:]),
        [torch.ones(1, 5, 5), torch.zeros(1, 5, 5)],
    )

    assert told(report) == expected(
        step=1,
        phase="forward",
        op="div",
        module="",
        file="torch_geometric/nn/dense/dmon_pool.py",
        code="normalizer = torch.matmul(ca, cb) / 2 / m_expand",
        cause="zero-division",
    )


def test_a_torch_function_that_the_library_replaced() -> None:
    """Importing torch_geometric replaces `torch.index_select`; the line is the caller's, not a stand-in's."""
    assert torch.index_select.__module__.startswith("torch_geometric")
    model = nn.Embedding(3, 2)
    with torch.no_grad():
        model.weight[1, 0] = torch.nan

    report = report_of(model, lambda i: torch.index_select(model.weight, 0, i).sum(), [torch.tensor([1])])

    assert (report.phase, report.origin.op) == ("parameters", "index_select")
    assert report.origin.source.expression == kept("torch.index_select(model.weight, 0, i)")
