"""Small checkpoints with random weights, in the real formats, and configs that use them."""

import json
import os
import shutil
import time
from pathlib import Path

import torch

from pcpo_ray import config
from pcpo_ray.config import files
from pcpo_ray.config.model import BACKBONES


def text_encoder(vocabulary: int, *, width: int = 16, projection: int | None = None):
    """A CLIPTextModel; with `projection`, a CLIPTextModelWithProjection to so many numbers."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    return (CLIPTextModel if projection is None else CLIPTextModelWithProjection)(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            projection_dim=projection or width,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def t5(vocabulary: int, width: int = 16):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=vocabulary, d_model=width, d_ff=32, d_kv=8, num_layers=1, num_heads=2))


def vae(channels: int, shift: float | None = None, *, levels: int = 2):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        shift_factor=shift,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
    )


def stable_diffusion(folder: Path, *, levels: int = 1) -> Path:
    """A StableDiffusionPipeline: 16 x 16 pixels, 4 x 8 x 8 latents.

    With one level only the network's middle attends to the text, and everything takes 0.4 of the time. With two it has
    all kinds of blocks that SD1.5 has.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    from pcpo_ray.commands.pretrain.shapes_world import WORLD
    from pcpo_ray.commands.pretrain.tokenizers import clip_tokenizer

    torch.manual_seed(0)
    tokenizer = clip_tokenizer(WORLD)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16)[:levels],
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D")[-levels:],
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")[:levels],
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae(4),
        text_encoder=text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def flux(folder: Path, *, guidance_embeds: bool = False) -> Path:
    """A FluxPipeline: images of 16 x 16 pixels have 4 x 4 tokens of 16 channels."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    from pcpo_ray.commands.pretrain.shapes_world import WORLD
    from pcpo_ray.commands.pretrain.tokenizers import clip_tokenizer, t5_tokenizer

    torch.manual_seed(0)
    tokenizer, tokenizer_2 = clip_tokenizer(WORLD), t5_tokenizer(WORLD)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=guidance_embeds,
    )
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, shift=0.1),
        text_encoder=text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=t5(len(tokenizer_2)),
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )
    pipeline.save_pretrained(folder)
    return folder


def sdxl(folder: Path) -> Path:
    """A StableDiffusionXLPipeline: 16 x 16 pixels, 4 x 8 x 8 latents, SDXL's own scheduler."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    from pcpo_ray.commands.pretrain.shapes_world import WORLD
    from pcpo_ray.commands.pretrain.tokenizers import clip_tokenizer

    torch.manual_seed(0)
    tokenizer = clip_tokenizer(WORLD)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16 + 24,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 2),
        use_linear_projection=True,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
    )
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, timestep_spacing="leading"
    )
    pipeline = StableDiffusionXLPipeline(
        vae=vae(4),
        text_encoder=text_encoder(len(tokenizer)),
        text_encoder_2=text_encoder(len(tokenizer), width=24, projection=12),
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(WORLD),
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def sd3(folder: Path, *, with_t5: bool = True) -> Path:
    """A StableDiffusion3Pipeline: images of 16 x 16 pixels have 4 x 8 x 8 latents."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    from pcpo_ray.commands.pretrain.shapes_world import WORLD
    from pcpo_ray.commands.pretrain.tokenizers import clip_tokenizer, t5_tokenizer

    torch.manual_seed(0)
    tokenizer, tokenizer_3 = clip_tokenizer(WORLD), t5_tokenizer(WORLD)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16 + 24,
        caption_projection_dim=16,
        pooled_projection_dim=16 + 24,
        pos_embed_max_size=24,
        dual_attention_layers=(0,),  # as SD3.5-medium has some
        qk_norm="rms_norm",
    )
    pipeline = StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, shift=0.1),
        text_encoder=text_encoder(len(tokenizer), projection=16),
        tokenizer=tokenizer,
        text_encoder_2=text_encoder(len(tokenizer), width=24, projection=24),
        tokenizer_2=clip_tokenizer(WORLD),
        text_encoder_3=t5(len(tokenizer_3), 16 + 24) if with_t5 else None,
        tokenizer_3=tokenizer_3 if with_t5 else None,
        transformer=transformer,
    )
    pipeline.save_pretrained(folder)
    return folder


def rescheduled(model: Path, folder: Path, **changes) -> Path:
    """A copy whose scheduler's config says something else."""
    return rewritten(model, folder, "scheduler/scheduler_config.json", **changes)


def rewritten(model: Path, folder: Path, file: str, **changes) -> Path:
    """A copy one of whose JSON files says something else."""
    copy = shutil.copytree(model, folder / model.name)
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return copy


def hollow(model: Path, folder: Path) -> Path:
    """A copy whose weights are empty files: whatever is found out about it was found out without loading it."""
    shutil.copytree(model, folder)
    for path in folder.rglob("*.safetensors"):
        path.write_bytes(b"")
    return folder


class Slow:
    """A reward that takes `seconds` a group: how bright an image is. A run that has to last uses it."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def score(self, images, prompts):
        time.sleep(self.seconds)
        return images.mean(axis=(1, 2, 3))


def slow(seconds: float) -> str:
    """The rewards of a run that take so long a group."""
    return f"[{{kind: 'tests.support.small:Slow', options: {{seconds: {seconds}}}}}]"


KINDS = sorted(BACKBONES, key=len, reverse=True)
"""A folder whose name has one of these is of that model.kind (the longest); any other is a Stable Diffusion."""


def run(path: Path, **changes) -> config.Run:
    """A run of seconds on a small model; `changes` are dotted keys, dots written as two underscores."""
    kind = next((kind for kind in KINDS if kind in Path(path).name), "stable_diffusion")
    flow = BACKBONES[kind].family == "flow"
    data = {
        "name": "small",
        "steps": 2,
        "model": {
            "kind": kind,
            "path": str(path),
            "train": {"kind": "lora", "rank": 2, "alpha": 2},
        },
        "prompts": {"kind": "shapes"},
        "sampling": {
            "steps": 4,
            "process": {"kind": "constant_noise" if flow else "ddim"},
            "guidance_scale": 1.0 if flow else 2.0,
            "height": 16,
            "width": 16,
        },
        "rewards": [{"kind": "jpeg_compressibility"}],
        "credit": {"kind": "proportionate" if flow else "reweight"},
        "advantage": {"kind": "group"},
        "objective": {"kind": "log_hinge", "clip_range": 0.01},
        "rollout": {"prompts": 3, "images": 4},
        "optimizer": {"learning_rate": 1e-2},
        "evaluation": {"count": 2, "images": 2, "every": 2},
        "checkpoints": {"every": 1, "keep": 3},
        "workers": {
            "samplers": {"cpus": 0.1},
            "scorers": {"cpus": 0.1},
            "learner": {"cpus": 0.1},
            "task_timeout": 120,
            "start_timeout": 120,
        },
    }
    for key, value in changes.items():
        files.set_key(data, f"{key.replace('__', '.')}={value}")
    return files.parse(data)


def without_weights(model: Path, folder: Path) -> Path:
    """A copy of a model's folder that has its JSON and text files only."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    return folder


def export(made):
    """What stands for diffusers' files in a checkpoint."""
    (made / "model").mkdir()
    (made / "model" / "unet.safetensors").write_bytes(b"12345")


def watch_disk(monkeypatch):
    """What is synced, renamed and deleted from now on, in order: (kind, path or "path -> path")."""
    done = []
    fsync, rename, replace, rmtree = os.fsync, Path.rename, Path.replace, shutil.rmtree

    def syncing(file):
        done.append(("sync", os.readlink(f"/proc/self/fd/{file}")))
        fsync(file)

    def removing(path, *args, **options):
        if Path(path).exists():
            done.append(("rmtree", str(path)))
        rmtree(path, *args, **options)

    def moving(move):
        def moved(path, target):
            done.append(("rename", f"{path} -> {target}"))
            return move(path, target)

        return moved

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(shutil, "rmtree", removing)
    monkeypatch.setattr(Path, "rename", moving(rename))
    monkeypatch.setattr(Path, "replace", moving(replace))
    return done
