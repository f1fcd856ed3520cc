"""Writes a Stable Diffusion 1.x as its authors did: one safetensors file in the layout of their latent diffusion."""

import re
from collections.abc import Collection
from pathlib import Path

import torch

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_NAMES = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
}


def unet_name(name: str, layers: int, attends: Collection[str]) -> str:
    """A weight's name in the authors' UNet; `attends` are diffusers' names of the blocks with attention."""
    ends, _, kind = name.rpartition(".")
    if ends in UNET_ENDS:
        return f"{UNET_ENDS[ends]}.{kind}"
    side, *block, what, index, rest = re.fullmatch(
        r"(down|mid|up)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    ).groups()
    if what == "resnets":
        layer, kind = rest.rsplit(".", 1)
        rest = f"{RESNET[layer]}.{kind}"
    place = {"resnets": 0, "attentions": 1}.get(what)
    if side == "mid":
        return f"middle_block.{2 * int(index) if what == 'resnets' else 1}.{rest}"
    first = int(block[0]) * (layers + 1)
    if what == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if what == "upsamplers":
        return f"output_blocks.{first + layers}.{2 if f'up_blocks.{block[0]}' in attends else 1}.{rest}"
    if side == "down":
        return f"input_blocks.{first + int(index) + 1}.{place}.{rest}"
    return f"output_blocks.{first + int(index)}.{place}.{rest}"


def vae_name(name: str, blocks: int) -> str:
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda found: f"up.{blocks - 1 - int(found[1])}.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda found: f"up.{blocks - 1 - int(found[1])}.upsample", name)
    for ours, theirs in VAE_NAMES.items():
        name = re.sub(rf"(?<=\.){re.escape(ours)}(?=\.)", theirs, name)
    return name


def write(pipeline, path: Path, *, vae: bool = True) -> Path:
    """The pipeline's weights in one file; without `vae`, as a fine-tuned model is often given away."""
    from safetensors.torch import save_file

    attends = {name.rsplit(".attentions", 1)[0] for name in pipeline.unet.state_dict() if ".attentions" in name}
    layers, blocks = pipeline.unet.config.layers_per_block, len(pipeline.vae.config.block_out_channels)
    weights: dict[str, torch.Tensor] = {}
    for name, weight in pipeline.unet.state_dict().items():
        weights[f"model.diffusion_model.{unet_name(name, layers, attends)}"] = weight
    for name, weight in pipeline.text_encoder.state_dict().items():
        weights[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = weight
    if vae:
        for name, weight in pipeline.vae.state_dict().items():
            convolved = ".attentions." in name and name.endswith("weight") and weight.ndim == 2  # 1 x 1 there
            weights[f"first_stage_model.{vae_name(name, blocks)}"] = weight[..., None, None] if convolved else weight
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
    return path
