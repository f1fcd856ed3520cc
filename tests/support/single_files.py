"""Writes models as their authors did, in one safetensors file: Stable Diffusion 1.x and XL in the layout of latent
diffusion, SD3 and SD3.5 in that of their transformer, Z-Image's, FLUX's and Chroma's transformers in their own."""

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
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_NAMES = {
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm": "ln_",
    "fc1": "c_fc",
    "fc2": "c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
SD3_ENDS = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
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


def open_clip(encoder) -> dict[str, torch.Tensor]:
    """A CLIPTextModelWithProjection's weights as open_clip has them: query, key and value in one."""
    weights = {name.removeprefix("text_model."): weight for name, weight in encoder.state_dict().items()}
    made = {"text_projection": weights.pop("text_projection.weight").T}
    for name, weight in weights.items():
        if name in OPEN_CLIP_ENDS:
            made[OPEN_CLIP_ENDS[name]] = weight
            continue
        for ours, theirs in OPEN_CLIP_NAMES.items():
            name = name.replace(ours, theirs)
        if ".self_attn." not in name:
            made[name] = weight
        elif ".q_proj." in name:
            layer, _, kind = name.partition(".self_attn.q_proj.")
            ours = f"{layer.replace('transformer.resblocks.', 'encoder.layers.')}.self_attn.{{}}_proj.{kind}"
            made[f"{layer}.attn.in_proj_{kind}"] = torch.cat([weights[ours.format(part)] for part in "qkv"])
    return made


def sd3(transformer) -> dict[str, torch.Tensor]:
    """Query, key and value in one; where the last norm scales and shifts, the shift comes first."""
    weights, last = transformer.state_dict(), transformer.config.num_layers - 1
    made = {}
    for name, weight in weights.items():
        ends, _, kind = name.rpartition(".")
        if "norm_out" in name or f"transformer_blocks.{last}.norm1_context" in name:
            weight = torch.cat(weight.chunk(2)[::-1])
        if name in SD3_ENDS or ends in SD3_ENDS:
            made[SD3_ENDS.get(name) or f"{SD3_ENDS[ends]}.{kind}"] = weight
            continue
        _, index, layer = ends.split(".", 2)
        if layer in SD3_BLOCK:
            made[f"joint_blocks.{index}.{SD3_BLOCK[layer]}.{kind}"] = weight
        elif layer in ("attn.to_q", "attn2.to_q", "attn.add_q_proj"):
            parts = [weights[name.replace("_q", f"_{part}")] for part in "qkv"]
            block = "context_block.attn" if "add" in layer else f"x_block.{layer.partition('.')[0]}"
            made[f"joint_blocks.{index}.{block}.qkv.{kind}"] = torch.cat(parts)
    return made


def clip(encoder) -> dict[str, torch.Tensor]:
    """A CLIP text encoder's weights, which have transformers' own names, without a projection."""
    named = {f"text_model.{name.removeprefix('text_model.')}": weight for name, weight in encoder.state_dict().items()}
    named.pop("text_model.text_projection.weight", None)
    return named


Z_IMAGE = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
    "to_out.0": "out",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}


def z_image(transformer, path: Path) -> Path:
    """The transformer's weights in one file, as they are given away without VAE and text encoder."""
    from safetensors.torch import save_file

    weights, made = transformer.state_dict(), {}
    for name, weight in weights.items():
        for ours, theirs in Z_IMAGE.items():
            name = name.replace(ours, theirs)
        made[name] = weight
    for name in [name for name in made if ".to_q." in name]:
        parts = [made.pop(name.replace("to_q", f"to_{part}")) for part in "qkv"]
        made[name.replace("to_q", "qkv")] = torch.cat(parts)
    save_file({name: weight.clone().contiguous() for name, weight in made.items()}, path)
    return path


FLUX = {
    "transformer_blocks": {
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
        "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
        "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
        "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
        "norm1.linear": "img_mod.lin",
        "norm1_context.linear": "txt_mod.lin",
    },
    "single_transformer_blocks": {
        "attn.norm_q.weight": "norm.query_norm.scale",
        "attn.norm_k.weight": "norm.key_norm.scale",
        "proj_out": "linear2",
        "norm.linear": "modulation.lin",
    },
}
FLUX_ENDS = {
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
}
JOINED: dict[str, dict[str, tuple[str, ...]]] = {
    "double_blocks": {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
    "single_blocks": {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")},
}
"""Layers that are one in the authors' files, by block."""


def flux(transformer, path: Path) -> Path:
    """FLUX.1's or Chroma's transformer in one file, without VAE and text encoders."""
    from safetensors.torch import save_file

    weights, made = dict(transformer.state_dict()), {}
    for ours, names in FLUX.items():
        theirs = ours.replace("single_transformer_blocks", "single_blocks").replace(
            "transformer_blocks", "double_blocks"
        )
        for index in {name.split(".")[1] for name in weights if name.startswith(f"{ours}.")}:
            for joined, parts in JOINED[theirs].items():
                for end in ("weight", "bias"):
                    rows = [weights.pop(f"{ours}.{index}.{part}.{end}") for part in parts]
                    made[f"{theirs}.{index}.{joined}.{end}"] = torch.cat(rows)
            for name in [name for name in weights if name.startswith(f"{ours}.{index}.")]:
                made[f"{theirs}.{index}.{renamed(name.split('.', 2)[2], names)}"] = weights.pop(name)
    for name, weight in weights.items():
        if name.startswith("distilled_guidance_layer."):
            name = name.replace("linear_1", "in_layer").replace("linear_2", "out_layer")
            made[re.sub(r"norms\.(\d+)\.weight", r"norms.\1.scale", name)] = weight
        elif name.startswith("norm_out.linear."):  # shift and scale are the other way round
            shifted = torch.cat(list(reversed(weight.chunk(2))))
            made[name.replace("norm_out.linear", "final_layer.adaLN_modulation.1")] = shifted
        else:
            made[renamed(name, FLUX_ENDS)] = weight
    save_file({name: weight.clone().contiguous() for name, weight in made.items()}, path)
    return path


def renamed(name: str, names: dict[str, str]) -> str:
    """The authors' name of a weight, by the beginning of ours."""
    ours = next(ours for ours in names if name == ours or name.startswith(f"{ours}."))
    return names[ours] + name[len(ours) :]


def parts_of(pipeline) -> dict[str, dict[str, torch.Tensor]]:
    """By prefix, the weights of all parts but the VAE."""
    if hasattr(pipeline, "transformer"):
        large = pipeline.text_encoder_2
        return {
            "model.diffusion_model.": sd3(pipeline.transformer),
            "text_encoders.clip_l.transformer.": clip(pipeline.text_encoder),
            "text_encoders.clip_g.transformer.": {
                **clip(large),
                "text_projection.weight": large.text_projection.weight,
            },
            "text_encoders.t5xxl.transformer.": pipeline.text_encoder_3.state_dict(),
        }
    unet = pipeline.unet.state_dict()
    attends = {name.rsplit(".attentions", 1)[0] for name in unet if ".attentions" in name}
    layers = pipeline.unet.config.layers_per_block
    found = {"model.diffusion_model.": {unet_name(name, layers, attends): weight for name, weight in unet.items()}}
    if hasattr(pipeline, "text_encoder_2"):
        found["conditioner.embedders.0.transformer."] = clip(pipeline.text_encoder)
        found["conditioner.embedders.1.model."] = open_clip(pipeline.text_encoder_2)
    else:
        found["cond_stage_model.transformer."] = clip(pipeline.text_encoder)
    return found


def write(pipeline, path: Path, *, vae: bool = True) -> Path:
    """The pipeline's weights in one file; without `vae`, as a fine-tuned model is often given away."""
    from safetensors.torch import save_file

    weights = {prefix + name: w for prefix, part in parts_of(pipeline).items() for name, w in part.items()}
    if vae:
        blocks = len(pipeline.vae.config.block_out_channels)
        for name, weight in pipeline.vae.state_dict().items():
            convolved = ".attentions." in name and name.endswith("weight") and weight.ndim == 2  # 1 x 1 there
            weights[f"first_stage_model.{vae_name(name, blocks)}"] = weight[..., None, None] if convolved else weight
    save_file({name: weight.clone().contiguous() for name, weight in weights.items()}, path)
    return path
