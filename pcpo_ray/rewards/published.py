"""Facts about published CLIP weights: activation and preprocessing, which a file of weights does not hold.

Two architectures may have the same shapes and different activations. open_clip's `ViT-L-14` has GELU, as LAION's and
DataComp's weights need; `ViT-L-14-quickgelu` has QuickGELU, as OpenAI's, MetaCLIP's and DFN's need. With the wrong one,
scores are plausible but wrong.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcpo_ray.errors import RewardError

POINTER = b"version https://git-lfs.github.com/spec/"
TWIN = "-quickgelu"
IN_TRANSFORMERS_FORMAT = {
    "clip-vit-base-patch32": True,
    "clip-vit-base-patch16": True,
    "clip-vit-large-patch14": True,
    "clip-vit-large-patch14-336": True,
    "PickScore_v1": False,
}
"""True for QuickGELU, by the names of repositories that publish in transformers' format only."""


PREPROCESS = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The origin of weights; `preprocess` has open_clip's mean, std, interpolation and resize_mode.

    `tag` is open_clip's name for them, if they are published.
    """

    name: str
    quick: bool
    preprocess: Mapping[str, Any]
    tag: str = ""


def fault(path: Path) -> str:
    """Explain why a file cannot be read; empty if it can."""
    if not path.is_file():
        return f"there is no file {path}"
    with path.open("rb") as file:
        pointer = file.read(len(POINTER)) == POINTER
    return f"{path} is a git-lfs pointer, not the file itself: run git lfs pull where it is kept" if pointer else ""


def check_folder(folder: Path) -> None:
    """Raise RewardError if git-lfs has not fetched the files of a model's folder that are read."""
    for path in (*sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt")), *_used(folder)):
        if found := fault(path):
            raise RewardError(found)


def _used(folder: Path) -> list[Path]:
    """List the weight files that are read: open_clip's or transformers' own names first, safetensors before others."""
    own = "open_clip_" if (folder / "open_clip_config.json").is_file() else "model"
    for pattern in (f"{own}*.safetensors", "*.safetensors", "*.bin", "*.pth"):
        if found := sorted(folder.glob(pattern)):
            return found
    return []


def is_torchscript(file: Path) -> bool:
    """Return True for an archive that also holds the network's code, as OpenAI's do."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def check_activation(architecture: str, file: Path) -> Origin | None:
    """Look up the weights for an architecture of open_clip's; None if nothing is known about them.

    Raises RewardError if they were trained with another activation, or if that is unknown. An architecture with a
    QuickGELU twin is only trusted if its name ends in -quickgelu.
    """
    import open_clip

    plain = architecture.removesuffix(TWIN)
    if plain + TWIN not in open_clip.list_models():
        return origin(plain, file)
    quick = architecture != plain
    found = origin(plain, file)
    if found is None and not quick:
        raise RewardError(
            f"nothing tells with which activation {file} was trained, and open_clip has {plain} (GELU: LAION's and "
            f"DataComp's weights) and {plain}{TWIN} (OpenAI's, MetaCLIP's and DFN's); write model: {plain}{TWIN} for "
            "the latter; for the former put their repository's open_clip_config.json beside the file, or give its "
            "folder as `model`, without `weights`"
        )
    if found is not None and found.quick != quick:
        wanted = plain + (TWIN if found.quick else "")
        raise RewardError(f"{file} is of {found.name}, for {wanted}; write model: {wanted}")
    return found


def origin(plain: str, file: Path) -> Origin | None:
    """Look up a file of weights for an architecture, `plain` without the twin's suffix."""
    beside = file.parent / "open_clip_config.json"
    if beside.is_file():
        try:
            described = json.loads(beside.read_text(encoding="utf-8"))
            quick = bool(described["model_cfg"].get("quick_gelu", False))
            return Origin(name=f"what {beside} describes", quick=quick, preprocess=described.get("preprocess_cfg", {}))
        except (ValueError, KeyError, AttributeError) as error:
            raise RewardError(f"{beside} is not a config of open_clip's: {error}; copy it again") from None
    published = _published(plain)
    if is_torchscript(file):
        return Origin(name="OpenAI's own archive", quick=True, preprocess={}, tag="openai")
    for tag, found in published.items():
        by_name = tag != "openai" and Path(found.get("url", "")).stem == file.stem  # that one is an archive
        if by_name or stands_in(found.get("hf_hub", ""), file.parent):
            return _of_tag(plain, tag, found)
    preprocesses = [{name: found[name] for name in PREPROCESS} for found in published.values()]
    if (
        preprocesses
        and all(one == preprocesses[0] for one in preprocesses)
        and preprocesses[0]["resize_mode"] != "shortest"
    ):
        return _of_tag(plain, *next(iter(published.items())))  # all of this architecture, such as SigLIP, want the same
    return None


def _of_tag(plain: str, tag: str, found: Mapping[str, Any]) -> Origin:
    preprocess = {name: found[name] for name in PREPROCESS}
    return Origin(
        name=f"open_clip's {plain}, {tag}", quick=found.get("quick_gelu", False), preprocess=preprocess, tag=tag
    )


def _published(plain: str) -> dict[str, Mapping[str, Any]]:
    """Return open_clip's facts about an architecture's published weights, by tag."""
    import open_clip

    return {tag: open_clip.get_pretrained_cfg(plain, tag) for tag in open_clip.list_pretrained_tags_by_model(plain)}


def stands_in(repository: str, folder: Path) -> bool:
    """Return True if a folder is a copy of the hub's repository, by its own name or the hub cache's."""
    name = repository.strip("/").rpartition("/")[2]
    return bool(name) and any(part.rpartition("--")[2] == name for part in folder.parts[-3:])


def check_transformers(folder: Path, described: Mapping[str, Any]) -> None:
    """Raise RewardError if a folder's config names another activation than the published one."""
    acts = {
        tower: described.get(tower, {}).get("hidden_act", "quick_gelu") for tower in ("text_config", "vision_config")
    }
    if len(set(acts.values())) > 1:
        raise RewardError(
            f"{folder}/config.json has text_config.hidden_act {acts['text_config']} and vision_config.hidden_act "
            f"{acts['vision_config']}, and no CLIP has two; copy it again from the model it belongs to"
        )
    quick = acts["vision_config"] == "quick_gelu"
    for name, expected in _by_repository().items():
        if stands_in(name, folder.absolute()) and quick != expected:
            raise RewardError(
                f"{folder}/config.json has hidden_act {acts['vision_config']}, and {name} was trained with "
                f"{'quick_gelu' if expected else 'gelu'}; copy config.json again from there"
            )


def other_than(name: str, folder: Path) -> str:
    """Name the published CLIP, other than `name`, that a folder is a copy of; empty if there is no sign of one."""
    return next((other for other in _by_repository() if other != name and stands_in(other, folder)), "")


def _by_repository() -> dict[str, bool]:
    """Map repositories of published weights to True if these have QuickGELU."""
    import open_clip

    found = dict(IN_TRANSFORMERS_FORMAT)
    for model, tag in open_clip.list_pretrained():
        known = open_clip.get_pretrained_cfg(model, tag)
        if name := known.get("hf_hub", "").strip("/").rpartition("/")[2]:
            found[name] = known.get("quick_gelu", False)
    return found
