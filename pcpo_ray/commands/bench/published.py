"""The JSON files of published models without weights, which suffice for planning.

The tokenizers are those of the embedded models, which split any text; published ones have larger vocabularies.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

CLIP_L = dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    max_position_embeddings=77,
    vocab_size=49408,
    projection_dim=768,
)
CLIP_G = {**CLIP_L, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
T5_XXL = dict(
    d_model=4096, d_ff=10240, d_kv=64, num_layers=24, num_heads=64, vocab_size=32128, feed_forward_proj="gated-gelu"
)


def write(
    folder: Path,
    pipeline: str,
    settings: Mapping[str, Any] = MappingProxyType({}),
    **parts: tuple[str | None, str | None, Any],
) -> Path:
    """Write a pipeline's folder; each part is (library, class, its config or an object that saves it, has weights)."""
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.42.1", **settings}
    for name, (library, cls, saved) in parts.items():
        index[name] = [library, cls]
        if library is not None:
            (folder / name).mkdir(parents=True, exist_ok=True)
            if isinstance(saved, dict):
                (folder / name / "config.json").write_text(json.dumps(saved))
            else:
                saved.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def tokenizer(kind: Literal["clip", "t5"], length: int) -> Any:
    from pcpo_ray.commands.pretrain.shapes_world import WORLD
    from pcpo_ray.commands.pretrain.tokenizers import clip_tokenizer, t5_tokenizer

    made = {"clip": clip_tokenizer, "t5": t5_tokenizer}[kind](WORLD)
    made.model_max_length = length
    return made


def network(cls: str, **settings: Any) -> dict[str, Any]:
    """Make a diffusers network's config."""
    return {"_class_name": cls, **settings}


def vae(channels: int) -> dict[str, Any]:
    quantised = channels == 4
    return network(
        "AutoencoderKL",
        block_out_channels=[128, 256, 512, 512],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        latent_channels=channels,
        sample_size=512,
        use_quant_conv=quantised,
        use_post_quant_conv=quantised,
        scaling_factor=0.18215,
        force_upcast=False,
    )


def text_config(kind: str, **settings: Any) -> dict[str, Any]:
    return {"model_type": kind, **settings}


@cache
def _schedulers() -> tuple[Any, Any]:
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    ddim = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return ddim, FlowMatchEulerDiscreteScheduler(shift=3.0)


def stable_diffusion(folder: Path) -> Path:
    """Write the files of Stable Diffusion 1.5, without its safety checker."""
    unet = network(
        "UNet2DConditionModel",
        sample_size=64,
        block_out_channels=[320, 640, 1280, 1280],
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    )
    return write(
        folder,
        "StableDiffusionPipeline",
        vae=("diffusers", "AutoencoderKL", vae(4)),
        text_encoder=("transformers", "CLIPTextModel", text_config("clip_text_model", **CLIP_L)),
        tokenizer=("transformers", "CLIPTokenizer", tokenizer("clip", 77)),
        unet=("diffusers", "UNet2DConditionModel", unet),
        scheduler=("diffusers", "DDIMScheduler", _schedulers()[0]),
        safety_checker=(None, None, None),
        feature_extractor=(None, None, None),
    )


def sdxl(folder: Path) -> Path:
    """Write the files of Stable Diffusion XL base 1.0."""
    from diffusers import EulerDiscreteScheduler

    unet = network(
        "UNet2DConditionModel",
        sample_size=128,
        block_out_channels=[320, 640, 1280],
        layers_per_block=2,
        cross_attention_dim=2048,
        attention_head_dim=[5, 10, 20],
        transformer_layers_per_block=[1, 2, 10],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
        down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    )
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        timestep_spacing="leading",
    )
    pooled = text_config("clip_text_model", **{**CLIP_G, "projection_dim": 1280})
    return write(
        folder,
        "StableDiffusionXLPipeline",
        {"force_zeros_for_empty_prompt": True},
        vae=("diffusers", "AutoencoderKL", {**vae(4), "scaling_factor": 0.13025, "force_upcast": True}),
        text_encoder=("transformers", "CLIPTextModel", text_config("clip_text_model", **CLIP_L)),
        tokenizer=("transformers", "CLIPTokenizer", tokenizer("clip", 77)),
        text_encoder_2=("transformers", "CLIPTextModelWithProjection", pooled),
        tokenizer_2=("transformers", "CLIPTokenizer", tokenizer("clip", 77)),
        unet=("diffusers", "UNet2DConditionModel", unet),
        scheduler=("diffusers", "EulerDiscreteScheduler", scheduler),
    )


def flux(folder: Path) -> Path:
    """Write the files of FLUX.1-dev."""
    return write(
        folder,
        "FluxPipeline",
        vae=("diffusers", "AutoencoderKL", vae(16)),
        text_encoder=("transformers", "CLIPTextModel", text_config("clip_text_model", **CLIP_L)),
        tokenizer=("transformers", "CLIPTokenizer", tokenizer("clip", 77)),
        text_encoder_2=("transformers", "T5EncoderModel", text_config("t5", **T5_XXL)),
        tokenizer_2=("transformers", "T5TokenizerFast", tokenizer("t5", 512)),
        transformer=("diffusers", "FluxTransformer2DModel", network("FluxTransformer2DModel", guidance_embeds=True)),
        scheduler=("diffusers", "FlowMatchEulerDiscreteScheduler", _schedulers()[1]),
    )


def sd3(folder: Path) -> Path:
    """Write the files of Stable Diffusion 3.5 medium."""
    transformer = network(
        "SD3Transformer2DModel",
        sample_size=128,
        num_layers=24,
        num_attention_heads=24,
        attention_head_dim=64,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        pos_embed_max_size=384,
        dual_attention_layers=list(range(13)),
        qk_norm="rms_norm",
    )
    projected = "CLIPTextModelWithProjection"
    return write(
        folder,
        "StableDiffusion3Pipeline",
        vae=("diffusers", "AutoencoderKL", vae(16)),
        text_encoder=("transformers", projected, text_config("clip_text_model", **CLIP_L)),
        tokenizer=("transformers", "CLIPTokenizer", tokenizer("clip", 77)),
        text_encoder_2=(
            "transformers",
            projected,
            text_config("clip_text_model", **{**CLIP_G, "projection_dim": 1280}),
        ),
        tokenizer_2=("transformers", "CLIPTokenizer", tokenizer("clip", 77)),
        text_encoder_3=("transformers", "T5EncoderModel", text_config("t5", **T5_XXL)),
        tokenizer_3=("transformers", "T5TokenizerFast", tokenizer("t5", 256)),
        transformer=("diffusers", "SD3Transformer2DModel", transformer),
        scheduler=("diffusers", "FlowMatchEulerDiscreteScheduler", _schedulers()[1]),
    )


def clip(folder: Path, *, large: bool) -> Path:
    """Write CLIP ViT-L-14 in transformers' format, or PickScore's ViT-H-14 if `large`."""
    from transformers import CLIPConfig

    text = {**CLIP_L, "hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24} if large else CLIP_L
    text = {**text, "intermediate_size": 4 * text["hidden_size"], "projection_dim": 1024 if large else 768}
    vision = dict(
        hidden_size=1280 if large else 1024,
        intermediate_size=5120 if large else 4096,
        num_hidden_layers=32 if large else 24,
        num_attention_heads=16,
        patch_size=14,
        image_size=224,
        projection_dim=text["projection_dim"],
    )
    CLIPConfig(text_config=text, vision_config=vision, projection_dim=text["projection_dim"]).save_pretrained(folder)
    return folder
