"""Small detectors of several families, with random weights that give scattered boxes and uneven scores."""

import torch
from transformers import (
    AutoModelForObjectDetection,
    ConditionalDetrConfig,
    DetrConfig,
    DFineConfig,
    ResNetConfig,
    RTDetrConfig,
    RTDetrResNetConfig,
    YolosConfig,
)

NUM_CLASSES = 5
NUM_QUERIES = 12
IMAGE_SIZE = (64, 96)  # height, width


def _resnet():
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16], depths=[1, 1, 1], out_features=["stage3"])


def _rt_resnet():
    return RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16],
        depths=[1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3"],
    )


def _detr(cls):
    return cls(
        use_timm_backbone=False,
        backbone_config=_resnet(),
        num_queries=NUM_QUERIES,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_labels=NUM_CLASSES,
    )


def _rt_detr(cls, **fields):
    return cls(
        backbone_config=_rt_resnet(),
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[12, 16],
        feat_strides=[8, 16],
        encoder_hidden_dim=16,
        encoder_layers=1,
        encoder_ffn_dim=24,
        encoder_attention_heads=2,
        encode_proj_layers=[1],
        hidden_expansion=0.5,
        d_model=16,
        num_queries=NUM_QUERIES,
        decoder_in_channels=[16, 16],
        decoder_ffn_dim=24,
        num_feature_levels=2,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_n_points=2,
        num_denoising=4,
        eval_size=None,
        num_labels=NUM_CLASSES,
        **fields,
    )


def _yolos():
    return YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=list(IMAGE_SIZE),
        patch_size=16,
        num_detection_tokens=NUM_QUERIES,
        num_labels=NUM_CLASSES,
    )


CONFIGS = {
    "d_fine": lambda: _rt_detr(DFineConfig, depth_mult=0.34),
    "rt_detr": lambda: _rt_detr(RTDetrConfig),
    "detr": lambda: _detr(DetrConfig),
    "conditional_detr": lambda: _detr(ConditionalDetrConfig),
    "yolos": _yolos,
}


def tiny_detector(family="d_fine", seed=0):
    """A detector of the family in evaluation mode."""
    detector = AutoModelForObjectDetection.from_config(CONFIGS[family]()).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in detector.named_parameters():
            if weight.dim() > 1:
                is_query = "query" in name or "detection_tokens" in name or "denoising" in name
                weight.normal_(0.0, 2.0 if is_query else 1.5 / weight[0].numel() ** 0.5, generator=generator)
            else:
                weight.normal_(0.0 if "bias" in name else 1.0, 0.1, generator=generator)
    return detector


def images(batch=3, seed=0):
    """Unequal images [B, 3, H, W] of coarse coloured patches."""
    patches = torch.randn(batch, 3, 4, 6, generator=torch.Generator().manual_seed(seed)) * 3
    return torch.nn.functional.interpolate(patches, IMAGE_SIZE)
