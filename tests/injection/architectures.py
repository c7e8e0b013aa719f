"""The eight architectures that faults are planted in: six of `transformers`, tiny and with random weights, two own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from ..torchvision_import import import_torchvision
from .own_models import ResNet, Tagger, images, sentences

import_torchvision()  # transformers' own modules, read when they are used, import it

Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to build one model and its batches; `loss` is what a training loop computes from the logits itself."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    loss: Callable[[Any, Batch], Tensor]
    checkpoints: bool = True  # transformers' gradient checkpointing can be switched on


def _tokens(generator: torch.Generator) -> Batch:
    ids = torch.randint(40, (2, 8), generator=generator)
    return {"input_ids": ids, "labels": ids.clone()}


def _pairs(generator: torch.Generator) -> Batch:
    return {
        "input_ids": torch.randint(40, (2, 8), generator=generator),
        "labels": torch.randint(40, (2, 6), generator=generator),
    }


def _masked(generator: torch.Generator) -> Batch:
    """As masked language modelling has it: only some of the tokens have a label, and the end is padding."""
    ids = torch.randint(40, (2, 8), generator=generator)
    labels = torch.where(torch.rand(2, 8, generator=generator) < 0.4, ids, -100)
    labels[:, 0] = ids[:, 0]
    attention = torch.ones(2, 8, dtype=torch.long)
    attention[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": attention, "labels": labels}


def _every_token(logits: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def _next_token(logits: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def _one_label(logits: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logits, batch["labels"])


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1
    )
    return transformers.GPT2LMHeadModel(config)


def _t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


def _bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config)


def _vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        num_labels=5, hidden_dropout_prob=0.1,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def _llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _mamba() -> nn.Module:
    config = transformers.MambaConfig(
        vocab_size=40, hidden_size=16, state_size=4, num_hidden_layers=2, conv_kernel=3, time_step_rank=2
    )
    return transformers.MambaForCausalLM(config)


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("gpt2", _gpt2, _tokens, _next_token),
        Architecture("t5", _t5, _pairs, _every_token),
        Architecture("bert", _bert, _masked, _every_token),
        Architecture("vit", _vit, images, _one_label),
        Architecture("llama", _llama, _tokens, _next_token),
        Architecture("mamba", _mamba, _tokens, _next_token),
        Architecture("resnet", ResNet, images, _one_label, checkpoints=False),
        Architecture("lstm", Tagger, sentences, _every_token, checkpoints=False),
    )
}
