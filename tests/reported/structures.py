"""Failures in programs of an unusual build: several backwards, parametrizations, vmap, checkpoints, hooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from .cases import Training, descend, failure

DIVISION = {"cause": "zero-division", "remedy": ("eps", "clamp")}


class UnitRows(nn.Module):
    """Rows of length 1."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / weight.norm(dim=1, keepdim=True)


@failure(
    step=2,
    phase="forward",
    op="div",
    module=("0.parametrizations.weight.0", "0"),
    line="weight / weight.norm(dim=1, keepdim=True)",
    **DIVISION,
)
def parametrized_weight_of_zeros() -> Training:
    """weight_norm doesn't support eta and returns nan for zero weights, pytorch/pytorch#19126."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    parametrize.register_parametrization(model[0], "weight", UnitRows())
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)

    def step(i: int) -> Tensor:
        if i == 2:
            with torch.no_grad():
                model[0].parametrizations.weight.original[1] = 0.0
        return descend(optimizer, model(torch.randn(5, 3)).square().mean())

    return Training((model,), step)


class WaveFunction(nn.Module):
    """The logarithm of an amplitude, one sample at a time under vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.orbitals = nn.Linear(2, 2, bias=False)

    def forward(self, electrons: Tensor) -> Tensor:
        return vmap(self.log_amplitude)(electrons)

    def log_amplitude(self, x: Tensor) -> Tensor:
        a = self.orbitals(x)
        return torch.log((a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0]).abs())


@failure(
    step=1,
    phase="forward",
    op="log",
    module="",
    line="torch.log((a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0]).abs())",
    cause="log-domain",
    remedy=("clamp", "eps"),
)
def electrons_at_the_same_place_under_vmap() -> Training:
    """Will log_determinant return inf for singular matrices?, google-deepmind/ferminet#5: two equal rows."""
    model = WaveFunction()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        electrons = torch.randn(4, 2, 2)
        if i == 1:
            electrons[2, 1] = electrons[2, 0]
        return descend(optimizer, -model(electrons).mean())

    return Training((model,), step)


@failure(
    step=1,
    phase="loss",
    op=("nll_loss", "div"),
    module=None,
    line="F.cross_entropy(model(torch.randn(4, 3)), labels, ignore_index=-1)",
    cause=("empty-reduction", "bad-label"),
    remedy=("ignore", "skip", "label", "empty"),
)
def accumulated_batch_without_labels() -> Training:
    """fix: NaN with HF when padding rows fill a micro-batch, EleutherAI/bergson#461: the second of three."""
    model = nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for part in range(3):
            labels = torch.tensor([0, 1, 2, 3]) if (i, part) != (1, 1) else torch.full((4,), -1)
            loss = F.cross_entropy(model(torch.randn(4, 3)), labels, ignore_index=-1) / 3
            loss.backward()
            total += loss.detach()
        optimizer.step()
        return total

    return Training((model,), step)


class RotationHead(nn.Module):
    """A rotation matrix's real part, recomputed by the old kind of checkpointing."""

    def forward(self, matrix: Tensor) -> Tensor:
        return checkpoint(self.real_part, matrix, use_reentrant=True)

    def real_part(self, matrix: Tensor) -> Tensor:
        trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
        return 0.5 * torch.sqrt(trace + 1.0)


class Orientation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.regress, self.rotation = nn.Linear(2, 9), RotationHead()

    def forward(self, x: Tensor) -> Tensor:
        return self.rotation(self.regress(x).reshape(-1, 3, 3))


@failure(
    step=1,
    phase="backward",
    op="sqrt",
    module="rotation",
    line="torch.sqrt(trace + 1.0)",
    cause="singular-gradient",
    remedy=("eps", "clamp"),
)
def half_turn_under_reentrant_checkpointing() -> Training:
    """nan Gradient in kornia.geometry.rotation_matrix_to_quaternion, kornia/kornia#1653: the trace is -1."""
    model = Orientation()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with torch.no_grad():
        model.regress.weight.mul_(0.01)
        model.regress.bias.zero_()

    def step(i: int) -> Tensor:
        x = torch.randn(3, 2)
        if i == 1:
            x.zero_()
            with torch.no_grad():
                model.regress.bias.zero_()[0] = -1.0
        return descend(optimizer, (model(x) - 1).square().mean())

    return Training((model,), step)


@failure(
    step=2,
    phase="loss",
    op="log",
    module=None,
    line="torch.log(1 - p)",
    cause=("log-domain", "precision"),
    remedy=("logsigmoid", "with_logits", "float32", "clamp", "eps"),
)
def certainty_under_bfloat16_autocast() -> Training:
    """Mixed precision causes NaN loss, pytorch/pytorch#40497: a probability of 0.999 is 1 in bfloat16."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        if i == 2:
            with torch.no_grad():
                model.bias.fill_(7.5)
                model.weight.mul_(0.01)
        with torch.autocast("cpu", torch.bfloat16):
            p = torch.sigmoid(model(torch.rand(4, 3)))
            loss = -torch.log(1 - p).mean()
        return descend(optimizer, loss.float())

    return Training((model,), step)


class InPlaceScale(nn.Module):
    """Scales every feature to at most 1, in place."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x.div_(x.amax(0, keepdim=True))
        return x.clamp_(-1, 1)


@failure(step=1, phase="forward", op="div", module="1", line="x.div_(x.amax(0, keepdim=True))", **DIVISION)
def feature_whose_maximum_is_zero() -> Training:
    """Nan value of lose and MSE, evandowning/deepreflect#11: a feature with a maximum of 0, scaled in place."""
    model = nn.Sequential(nn.ReLU(), InPlaceScale(), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        x = torch.rand(4, 3)
        if i == 1:
            x[:, 2] = -1.0
        return descend(optimizer, model(x).square().mean())

    return Training((model,), step)


class AngularLoss(nn.Module):
    """A watched criterion with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        cosine = (x @ self.centers.T) / (x.norm(dim=1, keepdim=True) * self.centers.norm(dim=1))
        return F.cross_entropy(8 * cosine, y)


@failure(
    step=2,
    phase=("forward", "loss"),
    op="div",
    module="",
    line="(x @ self.centers.T) / (x.norm(dim=1, keepdim=True) * self.centers.norm(dim=1))",
    **DIVISION,
)
def criterion_that_is_watched_too() -> Training:
    """LPIPS with Alex net returns Nan, francois-rozet/piqa#33: features of zeros are divided by their norm."""
    model, criterion = nn.Sequential(nn.Linear(5, 4), nn.ReLU()), AngularLoss()
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], 1e-3)

    def step(i: int) -> Tensor:
        x = torch.rand(3, 5)
        if i == 2:
            with torch.no_grad():
                model[0].bias.fill_(-9.0)
        return descend(optimizer, criterion(model(x), torch.tensor([0, 1, 2])))

    return Training((model, criterion), step)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).square().sum(1).sqrt()


@dataclass
class Pair:
    """What a siamese network gives back."""

    anchor: Tensor
    other: Tensor


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = Tower()

    def forward(self, *, anchor: Tensor, other: Tensor) -> Pair:
        return Pair(self.tower(anchor), self.tower(other))


@failure(
    step=1,
    phase="backward",
    op="sqrt",
    module="tower",
    line="self.project(x).square().sum(1).sqrt()",
    cause="singular-gradient",
    remedy=("eps", "clamp"),
)
def second_call_of_a_shared_tower() -> Training:
    """PerceptualLoss Bug, Project-MONAI/MONAI#8412: sqrt of a zero sum of squares, in one of two calls."""
    model = Siamese()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    nn.init.zeros_(model.tower.project.bias)

    def step(i: int) -> Tensor:
        other = torch.randn(3, 4)
        if i == 1:
            other[1] = 0.0
            with torch.no_grad():
                model.tower.project.bias.zero_()
        pair = model(anchor=torch.randn(3, 4), other=other)
        return descend(optimizer, (pair.anchor - pair.other).square().mean())

    return Training((model,), step)


@failure(
    step=2,
    phase="backward",
    op="pow",
    module=None,
    line="(hidden - hidden.detach()).abs().pow(0.5)",
    cause="singular-gradient",
    remedy=("eps", "clamp"),
)
def second_of_two_backwards() -> Training:
    """torch.cdist gradients are NAN for p<1, pytorch/pytorch#36493: a norm of order 0.5, in a backward of its own."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        hidden = model(torch.randn(5, 3))
        optimizer.zero_grad()
        loss = hidden.square().mean()
        loss.backward(retain_graph=True)
        if i == 2:
            (hidden - hidden.detach()).abs().pow(0.5).sum().backward()
        optimizer.step()
        return loss.detach()

    return Training((model,), step)


class MaskedPooling(nn.Module):
    """Attention pooling over the valid tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(4, 1)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        scores = self.score(x).squeeze(-1).masked_fill(~valid, float("-inf"))
        return (scores.softmax(1)[..., None] * x).sum(1)


class TextClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pool, self.head = nn.Embedding(9, 4), MaskedPooling(), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.pool(self.embed(ids), ids != 0))


@failure(
    step=(2, 3),
    phase="forward",
    op="softmax",
    module="pool",
    line="scores.softmax(1)",
    cause="masked-softmax",
    remedy=("mask", "row"),
)
def empty_text_in_an_evaluation() -> Training:
    """Unexpected NaNs with scaled_dot_product_attention when batch has padding, allenai/OLMo#322: without gradients."""
    model = TextClassifier()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        ids = torch.randint(1, 9, (3, 5))
        loss = descend(optimizer, F.cross_entropy(model(ids), torch.tensor([0, 1, 0])))
        if i == 2:
            ids[1] = 0
            model.eval()
            with torch.inference_mode():
                model(ids)
            model.train()
        return loss

    return Training((model,), step)


@failure(
    step=1,
    phase="loss",
    op="div",
    module=None,
    line="F.normalize(features, dim=1)",
    cause=("precision", "zero-division"),
    remedy=("eps", "float32"),
)
def zero_vector_normalised_in_half() -> Training:
    """loss is nan, HobbitLong/SupContrast#50, in float16: the eps of F.normalize, 1e-12, rounds to 0."""
    model = nn.Linear(4, 3, bias=False).half()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        x = torch.randn(4, 4).half()
        if i == 1:
            x[0] = 0.0
        features = model(x)
        features = F.normalize(features, dim=1)
        return descend(optimizer, (features @ features.T).float().logsumexp(1).mean())

    return Training((model,), step)


class BoundedActor(nn.Module):
    """An actor whose actions are scaled to the limits of the environment."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.register_buffer("low", torch.full((2,), -1.0))
        self.register_buffer("high", torch.full((2,), 1.0))

    def forward(self, observation: Tensor) -> Tensor:
        share = 0.5 * (self.net(observation).tanh() + 1)
        return self.low + share * (self.high - self.low)


@failure(
    step=0,
    phase="forward",
    op="sub",
    module="",
    line="self.low + share * (self.high - self.low)",
    cause="overflow",
    remedy=("scale", "clamp", "range", "limit"),
)
def action_space_without_limits() -> Training:
    """nan or inf in step(), m-abr/FCPCodebase#31: limits of finfo.max, whose difference is infinite."""
    model = BoundedActor()
    model.high.fill_(torch.finfo(torch.float32).max)
    model.low.fill_(-torch.finfo(torch.float32).max)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        return descend(optimizer, model(torch.randn(4, 3)).abs().mean())

    return Training((model,), step)


class Decoded(nn.Module):
    """Boxes from anchors and deltas."""

    def forward(self, anchors: Tensor, deltas: Tensor) -> Tensor:
        centers = anchors[:, :2] + deltas[:, :2] * anchors[:, 2:]
        sizes = anchors[:, 2:] * torch.exp(deltas[:, 2:])
        return torch.cat([centers - sizes / 2, centers + sizes / 2], 1)


class BoxNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deltas, self.decode = nn.Linear(3, 4), Decoded()

    def forward(self, x: Tensor, anchors: Tensor) -> Tensor:
        return self.decode(anchors, self.deltas(x))


@failure(
    step=2,
    phase="forward",
    op="exp",
    module="decode",
    line="anchors[:, 2:] * torch.exp(deltas[:, 2:])",
    cause="overflow",
    remedy=("clamp", "max"),
)
def box_size_without_bound() -> Training:
    """Overflow encountered in exp from bbox_transform.py, playerkk/face-py-faster-rcnn#19, with a list of backwards."""
    model = BoxNet()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        boxes = model(torch.randn(4, 3) * (900.0 if i == 2 else 1.0), torch.rand(4, 4) + 0.5)
        losses = [boxes[:, :2].square().mean(), boxes[:, 2:].abs().mean()]
        optimizer.zero_grad()
        torch.autograd.backward(losses)
        optimizer.step()
        return torch.stack(losses).sum().detach()

    return Training((model,), step)


class RelativeExponential(nn.Module):
    """(exp(x) - 1) / x, with its limit at 0."""

    def forward(self, x: Tensor) -> Tensor:
        small = x.abs() < 1e-6
        return torch.where(small, 1 + x / 2, torch.expm1(x) / x)


class Membrane(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.exprel = nn.Parameter(torch.ones(3)), RelativeExponential()

    def forward(self, voltage: Tensor) -> Tensor:
        return self.exprel(self.weight * voltage)


@failure(
    step=1,
    phase=("backward", "forward"),
    op="div",
    module="exprel",
    line="torch.where(small, 1 + x / 2, torch.expm1(x) / x)",
    cause=("masked-gradient", "zero-division"),
    remedy=("where", "before", "eps", "clamp"),
)
def membrane_at_rest() -> Training:
    """exprel second derivative is NaN at exactly x=0, chaobrain/saiunit#114: 0 / 0 in the branch that is not taken."""
    model = Membrane()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        voltage = torch.rand(4, 3) + 0.1
        if i == 1:
            voltage[2, 1] = 0.0
        return descend(optimizer, model(voltage).mean())

    return Training((model,), step)


@failure(
    step=2,
    phase="parameters",
    op=("addmm", "linear", "mm"),
    module="0",
    line="functional_call(model, weights",
    cause="bad-parameter",
    remedy=("weight", "checkpoint", "init", "parameter"),
)
def weights_poisoned_by_a_schedule() -> Training:
    """Fixes for warmup scheduler, mlcommons/hpc#27: a learning rate of nan, and an update written by hand."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    weights: dict[str, Any] = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        if i == 2:
            rate = torch.tensor(0.0) / torch.tensor(0.0)
            with torch.no_grad():
                weights["0.weight"].data.sub_(rate * torch.ones(4, 3))
        loss = functional_call(model, weights, (torch.randn(5, 3),)).square().mean()
        return descend(optimizer, loss)

    return Training((model,), step)
