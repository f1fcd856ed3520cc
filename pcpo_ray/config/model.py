"""The model: which one it is, where its files are, and what of it is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import Discriminator

from pcpo_ray.config.base import Count, Family, FilePath, NameOrPath, Positive, config


@dataclass(frozen=True)
class Backbone:
    """A model kind that the package ships: the path of its denoiser's class, and its family."""

    denoiser: str
    family: Family


ShippedKind = Literal["stable_diffusion", "sdxl", "sd3", "flux"]

BACKBONES: Mapping[ShippedKind, Backbone] = {
    "stable_diffusion": Backbone("pcpo_ray.models.stable_diffusion:StableDiffusion", "diffusion"),
    "sdxl": Backbone("pcpo_ray.models.sdxl:StableDiffusionXL", "diffusion"),
    "sd3": Backbone("pcpo_ray.models.sd3:StableDiffusion3", "flow"),
    "flux": Backbone("pcpo_ray.models.flux:Flux", "flow"),
}
"""The shipped backbones by model.kind. Their classes are imported on use: a scorer needs none of them."""


@config
class Lora:
    """Low-rank adapters on the layers whose names end in one of `targets`.

    `init` selects how the matrix A is drawn; B starts at 0. `start` is a LoRA to begin from, of the same rank and
    layers: a run's checkpoint, a file that diffusers reads, or a PEFT folder. It is reproduced exactly: a scale other
    than alpha / rank is multiplied into B. The reference of objective.kl stays the model without any adapter.
    """

    kind: Literal["lora"] = "lora"
    rank: Count = 16
    alpha: Positive = 16.0
    targets: Annotated[tuple[str, ...], MinLen(1)] = ("to_q", "to_k", "to_v", "to_out.0")
    init: Literal["kaiming", "gaussian"] = "kaiming"
    start: FilePath | None = None


@config
class Full:
    """Full fine-tuning: every parameter of the denoiser is trained."""

    kind: Literal["full"] = "full"


@config
class Model:
    """A folder in diffusers' format, or the name of a model that the package ships (shapes-sd, shapes-flux).

    `single_file` is a `.safetensors` file in its authors' layout. The parts that it contains are read from it, all
    others and every config from `path`. `variant` selects the folder's weights files (fp16: model.fp16.safetensors;
    null: files without a variant). `gradient_checkpointing` recomputes activations instead of keeping them.
    `vae_tiling` decodes one tile at a time, `vae_slicing` one image at a time. `text_cache` is a folder of encoded
    texts, shared by all runs that name it; workers then encode ahead and together (null: each process encodes the texts
    it meets). With kind custom, `denoiser` is `package.module:Class`, the user's own class (models/README.md), and
    `family` its family.
    """

    kind: Literal[ShippedKind, "custom"]
    path: NameOrPath
    single_file: FilePath | None = None
    variant: str | None = None
    denoiser: str | None = None
    family: Family | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    train: Annotated[Lora | Full, Discriminator("kind")] = field(default_factory=Lora)
    gradient_checkpointing: bool = False
    vae_tiling: bool = False
    vae_slicing: bool = False
    text_cache: FilePath | None = None

    def __post_init__(self) -> None:
        own = self.kind == "custom"
        for name in ("denoiser", "family"):
            value = getattr(self, name)
            if (value is not None) != own:
                raise ValueError(
                    f"model.{name} is {value!r} with model.kind={self.kind}; "
                    "give it with model.kind=custom, and only then"
                )
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
