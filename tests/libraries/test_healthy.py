"""Healthy trainings of released models: nothing is raised, nothing is counted, and no bit changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nantrace

from .training import library, losses_of

transformers = library("transformers")
diffusers = library("diffusers")
pyg = library("torch_geometric.nn")
flows = library("nflows.flows")
transforms = library("nflows.transforms")
distributions = library("nflows.distributions")
quantisation = library("vector_quantize_pytorch")
gpytorch = library("gpytorch")
torchcrf = library("torchcrf")
timm = library("timm")
timm_optim = library("timm.optim")
torchdiffeq = library("torchdiffeq")
pytorch_optimizer = library("pytorch_optimizer")

Training = tuple[tuple[nn.Module, ...], Callable[[Any], Tensor], list[Any], torch.optim.Optimizer]


def gpt2() -> Training:
    """A language model with dropout, padded on the left."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    )
    ids = torch.randint(0, 16, (5, 2, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return (model,), lambda x: model(input_ids=x, attention_mask=mask, labels=x).loss, list(ids), adamw


def diffusion() -> Training:
    """A UNet with attention, trained on noise; random time steps."""
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=10)

    def loss(clean: Tensor) -> Tensor:
        noise, t = torch.randn_like(clean), torch.randint(0, 10, (2,))
        return nn.functional.mse_loss(model(scheduler.add_noise(clean, noise, t), t).sample, noise)

    return (model,), loss, list(torch.randn(4, 2, 1, 8, 8)), torch.optim.Adam(model.parameters(), lr=1e-3)


def graph() -> Training:
    """Graph attention with dropout over a graph with an isolated node."""
    model = pyg.GAT(3, 8, num_layers=2, out_channels=2, heads=2, dropout=0.2)
    edges = torch.tensor([[0, 1, 2, 3, 1], [1, 0, 3, 2, 2]])
    target = torch.tensor([0, 1, 0, 1, 1])
    return (
        (model,),
        lambda x: nn.functional.cross_entropy(model(x, edges), target),
        list(torch.randn(5, 5, 3)),
        pytorch_optimizer.Lamb(model.parameters(), lr=1e-2),
    )


def spline_flow() -> Training:
    """A rational-quadratic spline flow, with points in its linear tails."""
    model = flows.Flow(
        transforms.CompositeTransform(
            [
                transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                    features=2, hidden_features=8, num_bins=4, tails="linear", tail_bound=1.0
                ),
                transforms.RandomPermutation(2),
            ]
        ),
        distributions.StandardNormal([2]),
    )
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    return (model,), lambda x: -model.log_prob(x).mean(), list(torch.randn(5, 8, 2)), adam


def quantised() -> Training:
    """A codebook kept by moving averages, in buffers that each call updates."""
    encoder, decoder = nn.Linear(4, 3), nn.Linear(3, 4)
    codebook = quantisation.VectorQuantize(dim=3, codebook_size=8, kmeans_init=True, kmeans_iters=2)
    model = nn.ModuleList([encoder, codebook, decoder])

    def loss(x: Tensor) -> Tensor:
        quantized, _, commitment = codebook(encoder(x))
        return nn.functional.mse_loss(decoder(quantized), x) + commitment.sum()

    return (model,), loss, list(torch.randn(5, 2, 6, 4)), torch.optim.SGD(model.parameters(), lr=1e-2)


def gaussian_process() -> Training:
    """Exact marginal likelihood; gpytorch's modules are called without `nn.Module.__call__`."""

    class Process(gpytorch.models.ExactGP):  # type: ignore[misc, name-defined]
        def __init__(self, x: Tensor, y: Tensor, likelihood: nn.Module) -> None:
            super().__init__(x, y, likelihood)
            self.mean, self.kernel = gpytorch.means.ConstantMean(), gpytorch.kernels.MaternKernel()

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    x = torch.linspace(0, 1, 8)
    y = torch.sin(6 * x)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = Process(x, y, likelihood)
    likelihood_of_data = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    return (
        (model,),
        lambda _: -likelihood_of_data(model(x), y),
        list(range(4)),
        torch.optim.Adam(model.parameters(), lr=0.1),
    )


def tagger() -> Training:
    """A recurrent net and a conditional random field on padded sequences."""
    net, crf = nn.GRU(4, 3, batch_first=True), torchcrf.CRF(3, batch_first=True)
    tags, mask = torch.randint(0, 3, (2, 5)), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    sgd = torch.optim.SGD([*net.parameters(), *crf.parameters()], lr=0.1, momentum=0.9)
    return (net, crf), lambda x: -crf(net(x)[0], tags, mask), list(torch.randn(5, 2, 5, 4)), sgd


def image_net() -> Training:
    """A vision net with batch norm, stochastic depth and in-place activations."""
    model = timm.create_model("resnet10t", num_classes=3, in_chans=1, drop_path_rate=0.2)
    target = torch.tensor([0, 2])
    return (
        (model,),
        lambda x: nn.functional.cross_entropy(model(x), target),
        list(torch.randn(2, 2, 1, 32, 32)),
        timm_optim.create_optimizer_v2(model, "lamb", lr=1e-2),
    )


def equation() -> Training:
    """A neural differential equation, its solution written step by step into a preallocated tensor."""
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    times = torch.linspace(0, 1, 5)

    def loss(start: Tensor) -> Tensor:
        return torchdiffeq.odeint(lambda t, y: model(y), start, times, method="rk4").square().mean()

    return (model,), loss, list(torch.randn(4, 3, 2)), torch.optim.RMSprop(model.parameters(), lr=1e-3)


@pytest.fixture(autouse=True)
def the_same_random_numbers() -> Iterator[None]:
    """Library code that seeds or forks the random streams must not reach the next test."""
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    "training",
    [gpt2, diffusion, graph, spline_flow, quantised, gaussian_process, tagger, image_net, equation],
    ids=lambda made: made.__name__,
)
def test_a_healthy_training_is_not_touched(training: Callable[[], Training]) -> None:
    """No anomaly, nothing contained, and losses and weights equal bit for bit to those without a watch."""
    torch.manual_seed(1)
    modules, *rest = training()
    plain = losses_of(*rest)
    torch.manual_seed(1)
    again, *rest = training()
    with nantrace.watch(*again) as tracer:
        watched = losses_of(*rest)

    assert watched == plain
    assert (tracer.reports, tracer.contained) == ([], 0)
    for module, other in zip(modules, again, strict=True):
        for (name, value), (_, theirs) in zip(module.state_dict().items(), other.state_dict().items(), strict=True):
            assert torch.equal(value, theirs), name
