"""Small checkpoints of the newer flow models, with random weights, in the real formats.

Each function makes one of a kind; images of 32 x 32 pixels have at most 16 tokens.
"""

from pathlib import Path

import torch

from pcpo_ray.commands.bench import tokenizers
from tests.support import small

LENGTH = 160
"""Tokens that texts are padded to; a byte is one."""

LANGUAGE = dict(
    hidden_size=16,
    intermediate_size=32,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=2048,
    initializer_range=0.3,
)
"""The sizes of all language models but their depth."""


def scheduler(**settings):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**settings)


def qwen3(layers: int):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    vocabulary = len(tokenizers.qwen(LENGTH))
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary, num_hidden_layers=layers, **LANGUAGE))


def flux2_vae():
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
    )
    vae.bn.running_mean.uniform_(-1, 1)
    vae.bn.running_var.uniform_(0.5, 4)
    return vae


def flux2_transformer(text: int, *, guidance_embeds: bool):
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=3 * text,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=guidance_embeds,
    )


def flux2_klein(folder: Path, *, is_distilled: bool = False) -> Path:
    """A Flux2KleinPipeline; its text encoder needs the 27 layers of which three are read."""
    from diffusers import Flux2KleinPipeline

    Flux2KleinPipeline(
        scheduler=scheduler(use_dynamic_shifting=True, shift=3.0),
        vae=flux2_vae(),
        text_encoder=qwen3(27),
        tokenizer=tokenizers.qwen(LENGTH),
        transformer=flux2_transformer(16, guidance_embeds=False),
        is_distilled=is_distilled,
    ).save_pretrained(folder)
    return folder


def flux2_dev(folder: Path) -> Path:
    """A Flux2Pipeline."""
    from diffusers import Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

    processor = tokenizers.pixtral(2 * LENGTH)
    text = MistralConfig(vocab_size=len(processor.tokenizer), num_hidden_layers=30, **LANGUAGE)
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Flux2Pipeline(
        scheduler=scheduler(use_dynamic_shifting=True, shift=3.0),
        vae=flux2_vae(),
        text_encoder=Mistral3ForConditionalGeneration(
            Mistral3Config(text_config=text, vision_config=vision, image_token_index=8)
        ),
        tokenizer=processor,
        transformer=flux2_transformer(16, guidance_embeds=True),
    ).save_pretrained(folder)
    return folder


def z_image(folder: Path) -> Path:
    """A ZImagePipeline with two refining layers of each kind."""
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 2, 2],
        axes_lens=[256, 32, 32],
    )
    for name in ("x_pad_token", "cap_pad_token"):
        torch.nn.init.normal_(getattr(transformer, name))
    ZImagePipeline(
        scheduler=scheduler(shift=6.0),
        vae=small.vae(4, shift=0.1),
        text_encoder=qwen3(2).model,
        tokenizer=tokenizers.qwen(LENGTH),
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def qwen_vae():
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[-0.7, 0.2, 0.9, -0.3],
        latents_std=[2.8, 1.4, 0.6, 1.1],
    )


def qwen25_vl(layers: int):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vocabulary = len(tokenizers.qwen(LENGTH))
    text = {
        "vocab_size": vocabulary,
        "num_hidden_layers": layers,
        **LANGUAGE,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    }
    vision = {
        **{"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
        **{"fullatt_block_indexes": [0], "patch_size": 2, "window_size": 8},
    }
    tokens = {f"{name}_token_id": 5 + index for index, name in enumerate(("image", "video", "vision_start"))}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens))


def qwen_image(folder: Path) -> Path:
    """A QwenImagePipeline, its scheduler as published."""
    from diffusers import QwenImagePipeline, QwenImageTransformer2DModel

    QwenImagePipeline(
        scheduler=scheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
        vae=qwen_vae(),
        text_encoder=qwen25_vl(2),
        tokenizer=tokenizers.qwen(LENGTH),
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
        ),
    ).save_pretrained(folder)
    return folder


def gemma2(layers: int):
    from transformers import Gemma2Config, Gemma2Model

    vocabulary = len(tokenizers.gemma(LENGTH))
    return Gemma2Model(Gemma2Config(vocab_size=vocabulary, num_hidden_layers=layers, **LANGUAGE))


def sana(folder: Path) -> Path:
    """A SanaPipeline with its own solver."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    both = {"block_types": ("ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8)}
    both |= {"layers_per_block": (1, 1), "qkv_multiscales": ((), (5,))}
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in both.items()},
        scaling_factor=0.41407,
    )
    SanaPipeline(
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        vae=vae,
        text_encoder=gemma2(1),
        tokenizer=tokenizers.gemma(LENGTH),
        transformer=SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=16,
        ),
    ).save_pretrained(folder)
    return folder


def lumina2(folder: Path) -> Path:
    """A Lumina2Pipeline, its VAE and its tokens of the published number of pixels."""
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    Lumina2Pipeline(
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=small.vae(4, shift=0.1, levels=4),
        text_encoder=gemma2(2),
        tokenizer=tokenizers.gemma(2 * LENGTH),
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=16,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(300, 16, 16),
            cap_feat_dim=16,
        ),
    ).save_pretrained(folder)
    return folder


def chroma(folder: Path) -> Path:
    """A ChromaPipeline."""
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    from pcpo_ray.commands.pretrain.shapes_world import WORLD
    from pcpo_ray.commands.pretrain.tokenizers import t5_tokenizer

    tokenizer = t5_tokenizer(WORLD)
    ChromaPipeline(
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=small.vae(4, shift=0.1),
        text_encoder=small.t5(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
            approximator_num_channels=16,
            approximator_hidden_dim=16,
            approximator_layers=1,
        ),
    ).save_pretrained(folder)
    return folder


def qwen3_vl(layers: int, kind: str = "Qwen3VLModel"):
    import transformers

    text = {
        "vocab_size": len(tokenizers.qwen(LENGTH)),
        "num_hidden_layers": layers,
        **LANGUAGE,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    }
    vision = {
        **{"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
        **{"deepstack_visual_indexes": [0], "patch_size": 2, "num_position_embeddings": 16},
    }
    settings = transformers.Qwen3VLConfig(text_config=text, vision_config=vision)
    return getattr(transformers, kind)(settings)


def qwen_image_21(folder: Path) -> Path:
    """A QwenImage21Pipeline that is sampled at any number of times; its VAE's images are partly transparent."""
    from diffusers import AutoencoderKLQwenImage21, QwenImage21Pipeline, QwenImage21Transformer2DModel

    QwenImage21Pipeline(
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage21(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[-0.7, 0.2, 0.9, -0.3],
            latents_std=[2.8, 1.4, 0.6, 1.1],
        ),
        text_encoder=qwen3_vl(2, "Qwen3VLForConditionalGeneration"),
        processor=tokenizers.qwen3_vl(LENGTH),
        transformer=QwenImage21Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            context_in_dim=16,
            axes_dims_rope=(4, 2, 2),
        ),
    ).save_pretrained(folder)
    return folder


def krea2(folder: Path) -> Path:
    """A Krea2Pipeline that is given two layers of its text encoder."""
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel

    Krea2Pipeline(
        scheduler=scheduler(use_dynamic_shifting=True, max_image_seq_len=6400),
        vae=qwen_vae(),
        text_encoder=qwen3_vl(2),
        tokenizer=tokenizers.qwen(LENGTH),
        transformer=Krea2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=16,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
        ),
        text_encoder_select_layers=(1, 2),
    ).save_pretrained(folder)
    return folder
