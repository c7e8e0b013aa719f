"""Values born in the backward pass: infinite derivatives, masked branches, double backward, custom Functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .cases import Training, descend, failure

SINGULAR = {"phase": "backward", "cause": "singular-gradient", "remedy": ("eps", "clamp")}
MASKED = {"phase": "backward", "cause": ("masked-gradient", "singular-gradient"), "remedy": ("where", "before", "fill")}


class Spectrogram(nn.Module):
    """Magnitudes of a fixed short-time Fourier transform."""

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.view_as_real(torch.fft.rfft(wave.unfold(-1, 8, 4)))
        power = spectrum[..., 0].pow(2) + spectrum[..., 1].pow(2)
        return torch.sqrt(power)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain, self.stft = nn.Conv1d(1, 1, 3, padding=1, bias=False), Spectrogram()

    def forward(self, wave: Tensor) -> Tensor:
        return self.stft(self.gain(wave[:, None]).squeeze(1))


@failure(step=2, op="sqrt", module="stft", line="torch.sqrt(power)", **SINGULAR)
def magnitude_of_silence() -> Training:
    """stft gradient can produce nan, KinWaiCheuk/nnAudio#138: bins without power have sqrt'(0) = inf."""
    model = Denoiser()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        wave = torch.randn(3, 32)
        if i == 2:
            wave[1] = 0.0
        return descend(optimizer, F.l1_loss(model(wave), torch.rand(3, 7, 5)))

    return Training((model,), step)


class Lab(nn.Module):
    """The lightness of a linear RGB colour."""

    def forward(self, rgb: Tensor) -> Tensor:
        y = rgb @ torch.tensor([0.2126, 0.7152, 0.0722])
        return torch.where(y > 0.008856, y.pow(1 / 3), 7.787 * y + 4 / 29)


class Colorizer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decode, self.lab = nn.Linear(4, 3, bias=False), Lab()
        nn.init.constant_(self.decode.weight, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lab(self.decode(x))


@failure(step=1, op="pow", module="lab", line="y.pow(1 / 3)", **MASKED)
def lightness_of_black() -> Training:
    """NaNs in Gradient of RGB to LAB Transformation, kornia/kornia#868: the hidden branch has pow'(0) = inf."""
    model = Colorizer()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        x = torch.rand(5, 4) + 0.1
        if i == 1:
            x[2] = 0.0
        return descend(optimizer, model(x).mean())

    return Training((model,), step)


class EquivariantConv(nn.Module):
    """Distances, messages and moved coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Linear(1, 1)

    def forward(self, position: Tensor, edges: Tensor) -> Tensor:
        difference = position[edges[0]] - position[edges[1]]
        radial = difference.square().sum(-1, keepdim=True)
        distance = torch.sqrt(radial)
        step = difference / (distance + 1e-6) * self.message(radial)
        return position.index_add(0, edges[1], step)


class EquivariantNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 3, bias=False)
        self.layers = nn.ModuleList(EquivariantConv() for _ in range(2))

    def forward(self, position: Tensor, edges: Tensor) -> Tensor:
        position = self.lift(position)
        for layer in self.layers:
            position = layer(position, edges)
        return position


@failure(step=1, op="sqrt", module=("layers.1", "layers.0"), line="torch.sqrt(radial)", **SINGULAR)
def points_at_the_same_place() -> Training:
    """EGNNConv Leading to NaN Gradients for Identical Input Coordinates, dmlc/dgl#7271."""
    model = EquivariantNet()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])

    def step(i: int) -> Tensor:
        position = torch.randn(4, 3) if i != 1 else torch.ones(4, 3)
        return descend(optimizer, (model(position, edges) - torch.randn(4, 3)).square().mean())

    return Training((model,), step)


@failure(
    step=2,
    op=("linalg_svd", "_linalg_svd", "svd"),
    module=None,
    line="torch.linalg.svd(source.T @ target)",
    phase="backward",
    cause="singular-gradient",
    remedy=("distinct", "equal", "repeated", "perturb", "jitter", "noise", "eps"),
)
def rotation_of_equal_singular_values() -> Training:
    """Unstable SVD: SvdHelperBackward0 returned nan values, Pzoom522/ProcrustEs-KGE#2."""
    model = nn.Linear(3, 3, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def procrustes(source: Tensor, target: Tensor) -> Tensor:
        u, _, v = torch.linalg.svd(source.T @ target)
        return (source @ (u @ v) - target).square().mean()

    def step(i: int) -> Tensor:
        x, y = torch.randn(6, 3), torch.randn(6, 3)
        if i == 2:
            x = y = torch.eye(3)
            with torch.no_grad():
                model.weight.copy_(torch.eye(3))
        return descend(optimizer, procrustes(model(x), y))

    return Training((model,), step)


class SincNet(nn.Module):
    """A network with a sinc activation, for a differential equation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(1, 6, bias=False), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.sinc(self.inner(x)))


@failure(
    step=1,
    phase="backward",
    op="sinc",
    module="",
    line="torch.sinc(self.inner(x))",
    cause=("singular-gradient", "masked-gradient"),
    remedy=("eps", "clamp", "where", "series", "zero"),
)
def curvature_at_the_origin() -> Training:
    """torch.sinc produces NaN in the second derivative at its removable singularity, pytorch/pytorch#196703."""
    model = SincNet()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        x = torch.rand(5, 1) + 0.1
        if i == 1:
            x[3] = 0.0
        x.requires_grad_()
        u = model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return descend(optimizer, (curvature + u).square().mean())

    return Training((model,), step)


@failure(step=1, op="sqrt", module=None, line="(second.sqrt() + 1e-8)", **SINGULAR)
def meta_gradient_through_adam() -> Training:
    """Got 'nan' when using MetaAdam as a inner_opt, metaopt/torchopt#26: sqrt'(0) where an inner gradient is 0."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)

    def adapt(support: Tensor) -> dict[str, Tensor]:
        weights = dict(model.named_parameters())
        inner = functional_call(model, weights, (support,)).square().mean()
        gradients = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        adapted = {}
        for (name, weight), gradient in zip(weights.items(), gradients):
            first, second = 0.1 * gradient, 0.001 * gradient.square()
            adapted[name] = weight - 0.01 * first / (second.sqrt() + 1e-8)
        return adapted

    def step(i: int) -> Tensor:
        with torch.no_grad():
            model[0].bias.fill_(9.0 if i != 1 else -9.0)
            model[0].bias[0] = 9.0
        loss = (functional_call(model, adapt(torch.randn(5, 3)), (torch.randn(5, 3),)) - 1).square().mean()
        return descend(optimizer, loss)

    return Training((model,), step)


class Encoder(nn.Module):
    """Attention over a padded sequence; the padded positions are cut out afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor, blocked: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, attn_mask=blocked)
        return self.head(mixed[:, ~blocked.all(1)])


@failure(
    step=2,
    phase=("forward", "backward"),
    op="softmax",
    module="attention",
    line="self.attention(x, x, x, attn_mask=blocked)",
    cause=("masked-softmax", "masked-gradient"),
    remedy=("mask", "row"),
)
def padded_rows_cut_out_afterwards() -> Training:
    """nn.MultiheadAttention causes gradients to become NaN under some use cases, pytorch/pytorch#41508."""
    model = Encoder()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        blocked = torch.ones(5, 5, dtype=torch.bool).triu(1)
        if i == 2:
            blocked[4] = True
        return descend(optimizer, model(torch.randn(2, 5, 8), blocked).square().mean())

    return Training((model,), step)


class CircleFlow(nn.Module):
    """A root inside the unit interval, the identity outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, y: Tensor) -> Tensor:
        y = self.scale * y
        return torch.where(y.abs() < 0.9, torch.sqrt(1 - y.square()), y)


@failure(
    step=2,
    phase=("backward", "forward"),
    op="sqrt",
    module="",
    line="torch.sqrt(1 - y.square())",
    cause=("masked-gradient", "sqrt-domain"),
    remedy=("where", "clamp", "before"),
)
def root_hidden_outside_the_interval() -> Training:
    """NaN gradients in RationalQuadraticSpline for out-of-bounds inputs, danielward27/flowjax#239."""
    model = CircleFlow()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        y = torch.rand(4, 2) * 0.8
        if i == 2:
            y[1, 0] = 3.0
        return descend(optimizer, model(y).square().mean())

    return Training((model,), step)


class Composite(torch.autograd.Function):
    """Alpha compositing with a backward that divides the transmittance out again."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor) -> Tensor:
        passed = torch.cumprod(1 - alpha, -1)
        ctx.save_for_backward(alpha, passed)
        return passed[..., -1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        alpha, passed = ctx.saved_tensors
        return -gradient[..., None] * passed[..., -1:] / (1 - alpha)


class Renderer(nn.Module):
    def forward(self, density: Tensor) -> Tensor:
        return Composite.apply(1 - torch.exp(-density.relu()))


class Nerf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.field, self.render = nn.Linear(3, 4), Renderer()

    def forward(self, rays: Tensor) -> Tensor:
        return self.render(self.field(rays))


@failure(
    step=1,
    phase="backward",
    op="Composite",
    module="render",
    line="Composite.apply(1 - torch.exp(-density.relu()))",
    cause=("zero-division", "singular-gradient"),
    remedy=("eps", "clamp", "backward"),
)
def opaque_point_on_a_ray() -> Training:
    """_CompositeAlphaPointsBackward returned nan values, facebookresearch/pytorch3d#202: alpha has reached 1."""
    model = Nerf()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        if i == 1:
            with torch.no_grad():
                model.field.bias[2] = 200.0
        return descend(optimizer, model(torch.rand(3, 3)).mean())

    return Training((model,), step)


class AxisAngle(nn.Module):
    """A rotation vector as a quaternion, recomputed in the backward pass."""

    def forward(self, vector: Tensor) -> Tensor:
        return checkpoint(self.quaternion, vector, use_reentrant=False)

    def quaternion(self, vector: Tensor) -> Tensor:
        theta = torch.sqrt(vector.square().sum(-1, keepdim=True))
        factor = torch.where(theta > 0, torch.sin(theta / 2) / theta, 0.5)
        return torch.cat([torch.cos(theta / 2), vector * factor], -1)


class PoseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.regress, self.pose = nn.Linear(4, 3, bias=False), AxisAngle()

    def forward(self, x: Tensor) -> Tensor:
        return self.pose(self.regress(x))


@failure(
    step=1,
    phase=("backward", "forward"),
    op=("sqrt", "div"),
    module="pose",
    line=("torch.sqrt(vector.square()", "torch.sin(theta / 2) / theta"),
    cause=("masked-gradient", "singular-gradient", "zero-division"),
    remedy=("where", "eps", "before", "clamp"),
)
def rotation_by_nothing() -> Training:
    """NaN gradients at the identity: axis_angle_to_quaternion, kornia/kornia#3949, here under checkpointing."""
    model = PoseNet()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        x = torch.randn(3, 4)
        if i == 1:
            x[2] = 0.0
        return descend(optimizer, (model(x) - torch.tensor([1.0, 0, 0, 0])).square().mean())

    return Training((model,), step)


@failure(
    step=0,
    phase="backward",
    op="logaddexp",
    module=None,
    line="torch.logaddexp(stay, emit)",
    cause=("inf-arithmetic", "singular-gradient"),
    remedy=("finite", "finfo", "-1e", "large negative"),
)
def transducer_lattice_in_log_space() -> Training:
    """Can i use RNNTLoss in transducer_np.py, HawkAaron/warp-transducer#19: the lattice by autograd, -inf outside."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def lattice(blank: Tensor, label: Tensor) -> Tensor:
        outside = torch.tensor(float("-inf"))
        row = [torch.zeros(()), outside, outside]
        for t in range(3):
            following = [row[0] + blank[t, 0]]
            for u in (1, 2):
                stay, emit = row[u] + blank[t, u], row[u - 1] + label[t, u - 1]
                following.append(torch.logaddexp(stay, emit))
            row = following
        return -row[2]

    def step(i: int) -> Tensor:
        scores = F.logsigmoid(model(torch.randn(3, 3, 3)))
        return descend(optimizer, lattice(scores[..., 0], scores[..., 1]))

    return Training((model,), step)


class Temperature(nn.Module):
    """Scales by the root of a learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.temperature.pow(0.5)


@failure(step=2, op="pow", module="1", line="self.temperature.pow(0.5)", **SINGULAR)
def infinite_gradient_before_clipping() -> Training:
    """clip_grad_norm_ silently passes when not finite, pytorch/pytorch#46849: clipping makes inf * 0 of it."""
    model = nn.Sequential(nn.Linear(3, 2), Temperature())
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step(i: int) -> Tensor:
        if i == 2:
            with torch.no_grad():
                model[1].temperature.zero_()
        loss = (model(torch.randn(5, 3)) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    return Training((model,), step)


@failure(
    step=1,
    phase=("backward", "loss"),
    op="div",
    module=None,
    line="numerator / denominator",
    cause=("masked-gradient", "zero-division", "singular-gradient"),
    remedy=("eps", "clamp", "before", "where"),
)
def percentage_error_masked_afterwards() -> Training:
    """DivBackward0 returned nan values, pytorch/pytorch#22820: 0 / 0 is cut out of the loss, not of its gradient."""
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def smape(predicted: Tensor, target: Tensor) -> Tensor:
        numerator = (predicted - target).abs()
        denominator = predicted.abs() + target.abs()
        error = numerator / denominator
        return error[~error.isnan()].mean()

    def step(i: int) -> Tensor:
        x, target = torch.randn(4, 3), torch.rand(4, 2) + 0.1
        if i == 1:
            x[0] = target[0] = 0.0
        return descend(optimizer, smape(model(x), target))

    return Training((model,), step)
