"""Which of diffusers' text-to-image pipelines the package has: `python -m tests.support.pipelines_table` writes it."""

import inspect
import pkgutil
import re
import textwrap

from pcpo_ray.config.model import BACKBONES
from tests.support import ROOT

README = ROOT / "pcpo_ray" / "models" / "README.md"
BEGIN, END = "<!-- pipelines: made by tests/support/pipelines_table.py -->\n", "<!-- end of pipelines -->\n"
VARIANTS = ("controlnet", "pag", "control")
"""Ends of the names of pipelines that add an input or another guidance to one that is listed itself."""

OTHERS = re.compile("Control|Adapter|PAG|Edit|Inpaint|2Img|Pix2Pix|Upscale|SuperResolution|Refiner|Layered|Onnx|ShapE")
"""Names of pipelines that need an image beside the text, make other things, or vary one that is listed itself."""

IMAGE_INPUTS = frozenset({"strength", "mask_image"})
"""Arguments of pipelines that start from an image."""


def network(pipeline: type) -> str:
    """The class of a pipeline's denoising network."""
    parameters = inspect.signature(pipeline).parameters
    parts = ("transformer", "unet", "prior_prior", "prior", "decoder")
    part = next((name for name in parts if name in parameters), None)
    if part is None:
        return "none"
    return getattr(parameters[part].annotation, "__name__", str(parameters[part].annotation))


def installed() -> dict[str, type]:
    """Diffusers' text-to-image pipelines by name: those that its AutoPipeline knows, and all others that it exports."""
    import diffusers
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    known = {
        cls.__name__: cls
        for name, cls in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items()
        if not any(part in VARIANTS for part in name.split("-"))
    }
    exported = (getattr(diffusers, name, None) for name in dir(diffusers))
    others = {cls.__name__: cls for cls in exported if inspect.isclass(cls) and makes_images_of_text(cls)}
    return {**others, **known}


def makes_images_of_text(cls: type) -> bool:
    """Whether a class is a pipeline that makes images of nothing but a text."""
    from diffusers import DiffusionPipeline

    if not issubclass(cls, DiffusionPipeline) or OTHERS.search(cls.__name__) or ".deprecated." in cls.__module__:
        return False
    parameters = inspect.signature(cls.__call__).parameters
    needed = {
        one.name for one in parameters.values() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    }
    if "prompt" not in parameters or needed - {"self", "prompt"} or IMAGE_INPUTS & parameters.keys():
        return False
    return re.search(r"\w*Output\(\s*images?=", inspect.getsource(cls.__call__)) is not None


def table() -> str:
    """Three lists: what we have, what has the network of one of these, and what we have not."""
    pipelines = installed()
    ours = {pkgutil.resolve_name(one.denoiser).pipeline_class: kind for kind, one in BACKBONES.items()}
    kinds: dict[str, str] = {}
    for name, kind in ours.items():
        kinds.setdefault(network(pipelines[name]), kind)  # the first, where several have one network
    lists = {"supported": [], "not supported, with the network of a supported one": [], "not supported": []}
    for name, cls in pipelines.items():
        kind = kinds.get(network(cls))
        which = 0 if name in ours else 1 if kind else 2
        text = f"`{name}`" + ("" if which == 2 else f" ({ours[name] if which == 0 else kind})")
        lists[list(lists)[which]].append(text)
    return "\n".join(
        textwrap.fill(f"- {what}: {', '.join(sorted(names))}", 118, subsequent_indent="  ", break_on_hyphens=False)
        for what, names in lists.items()
    )


def written(text: str) -> str:
    """The README's text with the lists of today."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
