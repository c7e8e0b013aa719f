"""Language, speech and vision models (transformers, x_transformers)."""

from __future__ import annotations

import torch

from .training import expected, library, report_of, told

transformers = library("transformers")
grounding_dino = library("transformers.models.grounding_dino.modeling_grounding_dino")
x_transformers = library("x_transformers")


def test_gated_t5_in_half_precision() -> None:
    """huggingface/transformers#14189 "T5-v1.1 loss go to nan when fp16 training was enabled".

    Since #9487 each block clamps infinities, but the product of the two gates reaches `wo`, where it becomes NaN.
    """
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=16,
            d_model=8,
            d_kv=4,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-silu",
            dropout_rate=0.0,
            pad_token_id=0,
            decoder_start_token_id=0,
        )
    ).half()
    gates = model.encoder.block[0].layer[1].DenseReluDense
    with torch.no_grad():
        gates.wi_0.weight.normal_(std=300)
        gates.wi_1.weight.normal_(std=300)
    ids = torch.tensor([[3, 5, 7, 1]])

    report = report_of(model, lambda labels: model(input_ids=ids, labels=labels).loss, [ids])

    assert told(report) == expected(
        phase="forward",
        op="mul",
        module="encoder.block.0.layer.1.DenseReluDense",
        file="transformers/models/t5/modeling_t5.py",
        code="hidden_states = hidden_gelu * hidden_linear",
        cause="overflow",
    )


def test_labels_that_are_all_ignored() -> None:
    """OpenRLHF/OpenRLHF#583 "Fix nan for sft-ring when labels are all IGNORE_INDEX", with GPT-2's own loss."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    )
    ids = torch.tensor([[3, 5, 7, 1]])

    report = report_of(
        model, lambda labels: model(input_ids=ids, labels=labels).loss, [ids, torch.full_like(ids, -100)]
    )

    assert told(report) == expected(
        step=1,
        phase="forward",
        op="nll_loss",
        module="",
        file="transformers/loss/loss_utils.py",
        code="loss = nn.functional.cross_entropy(source, target, ignore_index=ignore_index, reduction=reduction)",
        cause="empty-reduction",
    )


def test_a_temperature_that_nobody_clamps() -> None:
    """openai/CLIP#46 "Temperature Clipping Missing"; transformers' CLIP does not clamp it either."""
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={"vocab_size": 16, "max_position_embeddings": 8, "eos_token_id": 2, **sizes},
            vision_config={"image_size": 8, "patch_size": 4, **sizes},
            projection_dim=8,
        )
    )
    with torch.no_grad():
        model.logit_scale.fill_(100.0)
    ids, pixels = torch.tensor([[3, 4, 2], [5, 6, 2]]), torch.randn(2, 3, 8, 8)

    report = report_of(model, lambda x: model(input_ids=ids, pixel_values=x, return_loss=True).loss, [pixels])

    assert told(report) == expected(
        phase="forward",
        op="exp",
        module="",
        file="transformers/models/clip/modeling_clip.py",
        code="logits_per_text = logits_per_text * self.logit_scale.exp().to(text_embeds.device)",
        cause="overflow",
    )


def test_a_transcript_longer_than_the_speech() -> None:
    """huggingface/transformers#28582 "Making CTC training example more general".

    It adds `ctc_zero_infinity` to the example: "Infinite losses mainly occur when the inputs are too short to be
    aligned to the targets".
    """
    model = transformers.Wav2Vec2ForCTC(
        transformers.Wav2Vec2Config(
            vocab_size=6,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            conv_dim=(8, 8),
            conv_stride=(5, 2),
            conv_kernel=(10, 3),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            apply_spec_augment=False,
            layerdrop=0.0,
            ctc_loss_reduction="mean",
        )
    )
    speech = torch.randn(1, 400)
    short, long = torch.randint(1, 6, (1, 10)), torch.randint(1, 6, (1, 60))

    report = report_of(model, lambda labels: model(speech, labels=labels).loss, [short, long])

    assert told(report) == expected(
        step=1,
        phase="forward",
        op="ctc_loss",
        module="",
        file="transformers/loss/loss_ctc.py",
        code="return nn.functional.ctc_loss(",
        cause="bad-label",
    )


def test_a_prompt_of_padding_alone() -> None:
    """pytorch/pytorch#24816 "Transformer Encoder Layer with src_key_padding makes NaN", in GroundingDino's fusion."""
    model = grounding_dino.GroundingDinoBiMultiHeadAttention(
        transformers.GroundingDinoConfig(d_model=8, encoder_ffn_dim=16, encoder_attention_heads=4, fusion_dropout=0.0)
    )
    image, text = torch.randn(1, 6, 8), torch.randn(1, 4, 8)

    def loss(padded: int) -> torch.Tensor:
        mask = torch.arange(4)[None] >= 4 - padded
        (vision, _), _ = model(image, text, text_attention_mask=mask)
        return vision.square().mean()

    report = report_of(model, loss, [2, 4])

    assert told(report) == expected(
        step=1,
        phase="forward",
        op="softmax",
        module="",
        file="transformers/models/grounding_dino/modeling_grounding_dino.py",
        code="vision_attn_weights = attn_weights.softmax(dim=-1)",
        cause="masked-softmax",
    )


def test_attention_in_half_precision() -> None:
    """lucidrains/x-transformers#30 "Is it possible to support fp16/mixed precision training": `model.half()` gives NaN.

    The scores are scaled after the product, not before: they overflow.
    """
    model = x_transformers.TransformerWrapper(
        num_tokens=16,
        max_seq_len=8,
        attn_layers=x_transformers.Decoder(dim=16, depth=1, heads=2, attn_dim_head=8),
    ).half()
    attention = model.attn_layers.layers[0][1]
    with torch.no_grad():
        attention.to_q.weight.mul_(2000)
        attention.to_k.weight.mul_(2000)

    report = report_of(model, lambda ids: model(ids).float().square().mean(), [torch.tensor([[3, 5, 7, 1]])])

    assert told(report) == expected(
        phase="forward",
        op="bmm",
        module="attn_layers.layers.0.1.attend",
        file="x_transformers/attend.py",
        code="sim = einsum(f'b h i d, {kv_einsum_eq} -> b h i j', q, k)",
        cause="overflow",
    )
