"""Diffusion (diffusers)."""

from __future__ import annotations

import torch
from torch import nn

from .training import expected, library, report_of, told

diffusers = library("diffusers")
attention = library("diffusers.models.attention_processor")
pipeline = library("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")


def test_the_last_time_step_has_no_signal() -> None:
    """huggingface/diffusers#3851 "DDIMScheduler silently breaking when using epsilon prediction and rescaling betas to
    zero SNR".
    """
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=10, rescale_betas_zero_snr=True, clip_sample=False)
    scheduler.set_timesteps(10)
    model = nn.Conv2d(1, 1, 1)
    noisy, clean = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4)

    report = report_of(
        model,
        lambda t: (scheduler.step(model(noisy), t, noisy).pred_original_sample - clean).square().mean(),
        [5, 9],
    )

    assert told(report) == expected(
        step=1,
        phase="loss",
        op="div",
        module=None,
        file="diffusers/schedulers/scheduling_ddim.py",
        code="pred_original_sample = (sample - beta_prod_t ** (0.5) * model_output) / alpha_prod_t ** (0.5)",
        cause="zero-division",
    )


def test_guidance_without_variance() -> None:
    """huggingface/diffusers#13425 "Division by zero in rescale_noise_cfg can produce NaNs during inference"."""
    model = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.zeros_(model.weight)
    noise = torch.randn(1, 1, 4, 4)

    report = report_of(
        model, lambda x: pipeline.rescale_noise_cfg(model(x), noise, guidance_rescale=0.7).square().mean(), [noise]
    )

    assert told(report) == expected(
        phase="loss",
        op="div",
        module=None,
        file="diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py",
        code="noise_pred_rescaled = noise_cfg * (std_text / std_cfg)",
        cause="zero-division",
    )


def test_attention_scores_beyond_half_precision() -> None:
    """huggingface/diffusers#6815 "RuntimeWarning: invalid value encountered in cast ... output black image"."""
    model = attention.Attention(query_dim=8, heads=1, dim_head=8, processor=attention.AttnProcessor()).half()
    with torch.no_grad():
        for projection in (model.to_q, model.to_k):
            projection.weight.copy_(100 * torch.eye(8))
    x = torch.ones(1, 3, 8).half()

    report = report_of(model, lambda scale: model(x * scale).float().square().mean(), [0.1, 10.0])

    assert told(report) == expected(
        step=1,
        phase="forward",
        op="baddbmm",
        module="",
        file="diffusers/models/attention_processor.py",
        code="attention_scores = torch.baddbmm(",
        cause="overflow",
    )
