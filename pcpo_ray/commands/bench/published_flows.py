"""The JSON files of the newer published flow models without weights, as published.py has those of the older ones.

Values are those of the models' own config.json files, which are the defaults of diffusers' and transformers' classes
where none is given here. Inferred: the DC-AE's blocks, from its paper's f32c32 and diffusers' converter; Mistral
Small's and the Qwen3-VLs' sizes, from the cards of the language models that are named as FLUX.2-dev's, Krea 2's and
Qwen-Image 2.1's encoders; the schedulers of Chroma (FLUX.1's) and of Lumina-Image 2.0 (a shift of 6).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcpo_ray.commands.bench import tokenizers
from pcpo_ray.commands.bench.published import T5_XXL, network, text_config, tokenizer, vae, write

QWEN3_4B = dict(
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    tie_word_embeddings=True,
)
QWEN3_8B = {**QWEN3_4B, "hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
GEMMA2_2B = dict(
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    vocab_size=256000,
)
QWEN25_7B = dict(
    model_type="qwen2_5_vl_text",
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152064,
    rope_parameters={"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]},
)
QWEN3_VL_4B = dict(
    model_type="qwen3_vl_text",
    **QWEN3_4B,
    rope_parameters={"rope_type": "default", "rope_theta": 5000000.0, "mrope_section": [24, 20, 20]},
)
QWEN3_SIGHT_4B = dict(
    depth=24, hidden_size=1024, intermediate_size=4096, out_hidden_size=2560, deepstack_visual_indexes=[5, 11, 17]
)
QWEN3_VL_8B = {**QWEN3_VL_4B, "hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
QWEN3_SIGHT_8B = dict(out_hidden_size=4096)
MISTRAL_24B = dict(
    model_type="mistral",
    hidden_size=5120,
    intermediate_size=32768,
    num_hidden_layers=40,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=131072,
)
FLUX_VAE = {**vae(16), "scaling_factor": 0.3611, "shift_factor": 0.1159}
FLUX2_VAE = network("AutoencoderKLFlux2", block_out_channels=[128, 256, 512, 512])
QWEN25_SIGHT = dict(hidden_size=1280, intermediate_size=3420, out_hidden_size=3584)


def _euler(**settings: Any) -> tuple[str, str, Any]:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return "diffusers", "FlowMatchEulerDiscreteScheduler", FlowMatchEulerDiscreteScheduler(**settings)


def flux2_klein(folder: Path) -> Path:
    """Write the files of FLUX.2-klein-base-4B."""
    return _klein(folder, QWEN3_4B, num_layers=5, num_single_layers=20, num_attention_heads=24)


def flux2_klein_9b(folder: Path) -> Path:
    """Write the files of FLUX.2-klein-base-9B."""
    return _klein(folder, QWEN3_8B, num_layers=8, num_single_layers=24, num_attention_heads=32)


def _klein(folder: Path, text: Mapping[str, Any], **sizes: int) -> Path:
    transformer = network(
        "Flux2Transformer2DModel", joint_attention_dim=3 * text["hidden_size"], guidance_embeds=False, **sizes
    )
    return write(
        folder,
        "Flux2KleinPipeline",
        {"is_distilled": False},
        vae=("diffusers", "AutoencoderKLFlux2", FLUX2_VAE),
        text_encoder=("transformers", "Qwen3ForCausalLM", text_config("qwen3", **text)),
        tokenizer=("transformers", "Qwen2Tokenizer", tokenizers.qwen(131072)),
        transformer=("diffusers", "Flux2Transformer2DModel", transformer),
        scheduler=_euler(use_dynamic_shifting=True, shift=3.0),
    )


def flux2_dev(folder: Path) -> Path:
    """Write the files of FLUX.2-dev."""
    text = text_config("mistral3", text_config=MISTRAL_24B, vision_config={"model_type": "pixtral"})
    return write(
        folder,
        "Flux2Pipeline",
        vae=("diffusers", "AutoencoderKLFlux2", FLUX2_VAE),
        text_encoder=("transformers", "Mistral3ForConditionalGeneration", text),
        tokenizer=("transformers", "PixtralProcessor", tokenizers.pixtral(131072)),
        transformer=("diffusers", "Flux2Transformer2DModel", network("Flux2Transformer2DModel")),
        scheduler=_euler(use_dynamic_shifting=True, shift=3.0),
    )


def z_image(folder: Path) -> Path:
    """Write the files of Z-Image."""
    return write(
        folder,
        "ZImagePipeline",
        vae=("diffusers", "AutoencoderKL", FLUX_VAE),
        text_encoder=("transformers", "Qwen3Model", text_config("qwen3", **QWEN3_4B)),
        tokenizer=("transformers", "Qwen2Tokenizer", tokenizers.qwen(131072)),
        transformer=("diffusers", "ZImageTransformer2DModel", network("ZImageTransformer2DModel")),
        scheduler=_euler(shift=6.0),
    )


def qwen_image(folder: Path) -> Path:
    """Write the files of Qwen-Image."""
    text = text_config("qwen2_5_vl", text_config=QWEN25_7B, vision_config=QWEN25_SIGHT)
    return write(
        folder,
        "QwenImagePipeline",
        vae=("diffusers", "AutoencoderKLQwenImage", network("AutoencoderKLQwenImage")),
        text_encoder=("transformers", "Qwen2_5_VLForConditionalGeneration", text),
        tokenizer=("transformers", "Qwen2Tokenizer", tokenizers.qwen(131072)),
        transformer=("diffusers", "QwenImageTransformer2DModel", network("QwenImageTransformer2DModel")),
        scheduler=_euler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        ),
    )


def sana(folder: Path) -> Path:
    """Write the files of SANA 0.6B for 1024 x 1024 pixels."""
    from diffusers import DPMSolverMultistepScheduler

    blocks = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
    dc_ae = network(
        "AutoencoderDC",
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=[128, 256, 512, 512, 1024, 1024],
        decoder_block_out_channels=[128, 256, 512, 512, 1024, 1024],
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41407,
    )
    transformer = network(
        "SanaTransformer2DModel",
        num_attention_heads=36,
        num_layers=28,
        num_cross_attention_heads=16,
        cross_attention_head_dim=72,
        cross_attention_dim=1152,
    )
    solver = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return write(
        folder,
        "SanaPipeline",
        vae=("diffusers", "AutoencoderDC", dc_ae),
        text_encoder=("transformers", "Gemma2Model", text_config("gemma2", **GEMMA2_2B)),
        tokenizer=("transformers", "GemmaTokenizer", tokenizers.gemma(8192)),
        transformer=("diffusers", "SanaTransformer2DModel", transformer),
        scheduler=("diffusers", "DPMSolverMultistepScheduler", solver),
    )


def qwen_image_21(folder: Path) -> Path:
    """Write the files of Qwen-Image 2.1, without the times that it was distilled for."""
    text = text_config("qwen3_vl", text_config=QWEN3_VL_8B, vision_config=QWEN3_SIGHT_8B, tie_word_embeddings=False)
    return write(
        folder,
        "QwenImage21Pipeline",
        vae=("diffusers", "AutoencoderKLQwenImage21", network("AutoencoderKLQwenImage21")),
        text_encoder=("transformers", "Qwen3VLForConditionalGeneration", text),
        processor=("transformers", "Qwen3VLProcessor", tokenizers.qwen3_vl(131072)),
        transformer=("diffusers", "QwenImage21Transformer2DModel", network("QwenImage21Transformer2DModel")),
        scheduler=_euler(use_dynamic_shifting=True),
    )


def krea2(folder: Path) -> Path:
    """Write the files of Krea 2, the base."""
    text = text_config("qwen3_vl", text_config=QWEN3_VL_4B, vision_config=QWEN3_SIGHT_4B, tie_word_embeddings=True)
    return write(
        folder,
        "Krea2Pipeline",
        {"is_distilled": False, "patch_size": 2, "text_encoder_select_layers": list(range(2, 36, 3))},
        vae=("diffusers", "AutoencoderKLQwenImage", network("AutoencoderKLQwenImage")),
        text_encoder=("transformers", "Qwen3VLModel", text),
        tokenizer=("transformers", "Qwen2Tokenizer", tokenizers.qwen(131072)),
        transformer=("diffusers", "Krea2Transformer2DModel", network("Krea2Transformer2DModel")),
        scheduler=_euler(use_dynamic_shifting=True, max_image_seq_len=6400),
    )


def lumina2(folder: Path) -> Path:
    """Write the files of Lumina-Image 2.0."""
    transformer = network("Lumina2Transformer2DModel", sample_size=128, cap_feat_dim=GEMMA2_2B["hidden_size"])
    return write(
        folder,
        "Lumina2Pipeline",
        vae=("diffusers", "AutoencoderKL", FLUX_VAE),
        text_encoder=("transformers", "Gemma2Model", text_config("gemma2", **GEMMA2_2B)),
        tokenizer=("transformers", "GemmaTokenizer", tokenizers.gemma(8192)),
        transformer=("diffusers", "Lumina2Transformer2DModel", transformer),
        scheduler=_euler(shift=6.0),
    )


def chroma(folder: Path) -> Path:
    """Write the files of Chroma1-HD."""
    return write(
        folder,
        "ChromaPipeline",
        vae=("diffusers", "AutoencoderKL", FLUX_VAE),
        text_encoder=("transformers", "T5EncoderModel", text_config("t5", **T5_XXL)),
        tokenizer=("transformers", "T5TokenizerFast", tokenizer("t5", 512)),
        transformer=("diffusers", "ChromaTransformer2DModel", network("ChromaTransformer2DModel")),
        scheduler=_euler(use_dynamic_shifting=True, shift=3.0),
    )
