"""The model: which one it is, where its files are, and what of it is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import Discriminator

from pcpo_ray.config.base import Count, Family, FilePath, HubIdOrPath, Positive, config

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers of a network's attention, as most of diffusers' networks call them."""

JOINT = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""The same with those of a stream of text tokens of its own."""


AttentionBackend = Literal[
    "native", "_native_math", "_native_flash", "_native_efficient", "flash", "_flash_3", "xformers"
]
"""Attention backends of diffusers that have gradients, by diffusers' names.

Those without (sage) cannot train, and cuDNN's gradients were NaN in bfloat16 (models/policy.py).
"""

AttentionKind = Literal["cross", "text_first", "text_last"]
"""Layers in which a network attends to the prompt: of their own, or over prompt and image, the prompt first or last."""


@dataclass(frozen=True)
class Backbone:
    """A model kind that the package ships: its denoiser's class, its family, and the layers that a LoRA is put on.

    `pipeline` is the class of diffusers' that the model's folder names; empty where only a denoiser of the user's own
    knows it. `attention` says how credit `attention` reads its maps; None where it cannot.
    """

    denoiser: str
    family: Family
    pipeline: str = ""
    targets: tuple[str, ...] = ATTENTION
    attention: AttentionKind | None = None


ShippedKind = Literal[
    "stable_diffusion",
    "sdxl",
    "sd3",
    "flux",
    "flux2_klein",
    "flux2_dev",
    "z_image",
    "qwen_image",
    "qwen_image_21",
    "sana",
    "chroma",
    "krea2",
    "lumina2",
]

BACKBONES: Mapping[ShippedKind, Backbone] = {
    "stable_diffusion": Backbone(
        "pcpo_ray.models.stable_diffusion:StableDiffusion", "diffusion", "StableDiffusionPipeline", attention="cross"
    ),
    "sdxl": Backbone(
        "pcpo_ray.models.sdxl:StableDiffusionXL", "diffusion", "StableDiffusionXLPipeline", attention="cross"
    ),
    "sd3": Backbone("pcpo_ray.models.sd3:StableDiffusion3", "flow", "StableDiffusion3Pipeline", attention="text_last"),
    "flux": Backbone("pcpo_ray.models.flux:Flux", "flow", "FluxPipeline", attention="text_first"),
    "flux2_klein": Backbone(
        "pcpo_ray.models.flux2:Flux2Klein", "flow", "Flux2KleinPipeline", (*JOINT, "to_qkv_mlp_proj")
    ),
    "flux2_dev": Backbone("pcpo_ray.models.flux2_dev:Flux2Dev", "flow", "Flux2Pipeline", (*JOINT, "to_qkv_mlp_proj")),
    "z_image": Backbone("pcpo_ray.models.z_image:ZImage", "flow", "ZImagePipeline"),
    "qwen_image": Backbone(
        "pcpo_ray.models.qwen_image:QwenImage", "flow", "QwenImagePipeline", JOINT, attention="text_first"
    ),
    "qwen_image_21": Backbone("pcpo_ray.models.qwen_image_21:QwenImage21", "flow", "QwenImage21Pipeline"),
    "sana": Backbone("pcpo_ray.models.sana:Sana", "flow", "SanaPipeline", attention="cross"),
    "chroma": Backbone("pcpo_ray.models.chroma:Chroma", "flow", "ChromaPipeline", attention="text_first"),
    "krea2": Backbone("pcpo_ray.models.krea2:Krea2", "flow", "Krea2Pipeline", (*ATTENTION, "to_gate")),
    "lumina2": Backbone("pcpo_ray.models.lumina2:Lumina2", "flow", "Lumina2Pipeline"),
}
"""The shipped backbones by model.kind. Their classes are imported on use: a scorer needs none of them."""


@config
class Lora:
    """Low-rank adapters on some of the network's layers.

    The reference of objective.kl stays the model without any adapter.
    """

    kind: Literal["lora"] = "lora"
    rank: Count = 16
    """The rank of each layer's update."""
    alpha: Positive = 16.0
    """The scale of the update, times the rank: it is added as alpha / rank x B A."""
    targets: Annotated[tuple[str, ...], MinLen(1)] | None = None
    """The layers that get an adapter: those whose names end in one of these; null: those of attention, by model.kind.

    For most kinds these are to_q, to_k, to_v and to_out.0.
    """
    init: Literal["kaiming", "gaussian"] = "kaiming"
    """The distribution of the matrix A; B starts at 0."""
    start: FilePath | None = None
    """A LoRA to begin from, of the same rank and layers; null: a new one.

    It is a run's checkpoint, a file that diffusers reads, or a PEFT folder. It is reproduced exactly: a scale other
    than alpha / rank is multiplied into B.
    """


@config
class Full:
    """Full fine-tuning: every parameter of the denoiser is trained."""

    kind: Literal["full"] = "full"


@config
class Model:
    """The model: where its files are, and what of it is trained."""

    kind: Literal[ShippedKind, "custom"]
    """The family of pipelines that the model belongs to; `custom` is a class of yours (models/README.md)."""
    path: HubIdOrPath
    """A folder in diffusers' format, an id of the Hugging Face Hub, or a shipped model.

    The package ships shapes-sd, shapes-flux, words-sd and words-flux.
    """
    single_file: FilePath | None = None
    """A `.safetensors` file in its authors' layout; its parts are read from it, all others and configs from `path`."""
    variant: str | None = None
    """The variant of the folder's weights files, as fp16 for model.fp16.safetensors; null: files without one."""
    denoiser: str | None = None
    """With kind custom: your class, as `package.module:Class`."""
    family: Family | None = None
    """With kind custom: what your model predicts, noise (diffusion) or a velocity (flow)."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The dtype that the model is loaded in; trained weights also have a float32 copy.

    The loss of a float16 network has a fixed scale; one whose gradients overflow all the same needs bfloat16.
    """
    train: Annotated[Lora | Full, Discriminator("kind")] = field(default_factory=Lora)
    """The part of the denoising network that is trained: an adapter or all of it."""
    attention: AttentionBackend | None = None
    """The program that computes attention, by diffusers' name of it; null: torch's choice.

    Samplers and learner both use it, so that both compute the same bits. It is for networks whose attention diffusers
    dispatches (FLUX, FLUX.2, Chroma, Qwen-Image, Z-Image, Krea 2); `flash`, `_flash_3` and `xformers` need their
    packages and a GPU.
    """
    gradient_checkpointing: bool = False
    """True recomputes activations in the backward pass instead of keeping them: less memory, more time."""
    vae_tiling: bool = False
    """True decodes one tile of an image at a time."""
    vae_slicing: bool = False
    """True decodes one image at a time."""
    text_cache: FilePath | None = None
    """A folder of encoded texts, shared by all runs that name it; null: each process encodes the texts it meets.

    Workers that share one encode ahead and together.
    """

    def __post_init__(self) -> None:
        own = self.kind == "custom"
        for name in ("denoiser", "family"):
            value = getattr(self, name)
            if (value is not None) != own:
                raise ValueError(
                    f"model.{name} is {value!r} with model.kind={self.kind}; "
                    "give it with model.kind=custom, and only then"
                )
        if isinstance(self.train, Lora) and self.train.targets is None:
            object.__setattr__(self, "train", replace(self.train, targets=self.backbone.targets))
        if self.variant is not None and self.single_file is not None:
            raise ValueError(
                f"model.variant is {self.variant!r}, and model.single_file replaces the files that a variant selects; "
                "give one of the two"
            )

    @property
    def backbone(self) -> Backbone:
        """The class path and the family of the denoiser, shipped or the user's own."""
        if self.kind == "custom":
            assert self.denoiser is not None and self.family is not None  # __post_init__ has checked it
            return Backbone(self.denoiser, self.family)
        return BACKBONES[self.kind]
