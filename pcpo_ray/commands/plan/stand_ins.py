"""Stand-ins for models that are not on this machine: the published sizes of those that a recipe may name."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pcpo_ray import models
from pcpo_ray.commands.bench import published, published_flows
from pcpo_ray.commands.plan import Plan
from pcpo_ray.config import Model, Reward, Run
from pcpo_ray.errors import ModelError
from pcpo_ray.models import hub


@dataclass(frozen=True)
class Published:
    """A model whose sizes are known: its id on the Hugging Face Hub, and the function that writes its configs."""

    id: str
    write: Callable[[Path], Path]


MODELS: Mapping[str, tuple[str, Published]] = {
    found.id.rpartition("/")[2]: (kind, found)
    for kind, found in (
        ("stable_diffusion", Published("CompVis/stable-diffusion-v1-4", published.stable_diffusion)),
        ("stable_diffusion", Published("stable-diffusion-v1-5/stable-diffusion-v1-5", published.stable_diffusion)),
        ("sdxl", Published("stabilityai/stable-diffusion-xl-base-1.0", published.sdxl)),
        ("sd3", Published("stabilityai/stable-diffusion-3.5-medium", published.sd3)),
        ("flux", Published("black-forest-labs/FLUX.1-dev", published.flux)),
        ("flux2_klein", Published("black-forest-labs/FLUX.2-klein-base-4B", published_flows.flux2_klein)),
        ("flux2_klein", Published("black-forest-labs/FLUX.2-klein-base-9B", published_flows.flux2_klein_9b)),
        ("z_image", Published("Tongyi-MAI/Z-Image", published_flows.z_image)),
        ("qwen_image", Published("Qwen/Qwen-Image", published_flows.qwen_image)),
        ("flux2_dev", Published("black-forest-labs/FLUX.2-dev", published_flows.flux2_dev)),
        ("qwen_image_21", Published("Qwen/Qwen-Image-2.1", published_flows.qwen_image_21)),
        ("krea2", Published("krea/Krea-2-Raw", published_flows.krea2)),
        ("lumina2", Published("Alpha-VLLM/Lumina-Image-2.0", published_flows.lumina2)),
        ("chroma", Published("lodestones/Chroma1-HD", published_flows.chroma)),
        ("sana", Published("Efficient-Large-Model/Sana_600M_1024px_diffusers", published_flows.sana)),
    )
}
"""The kind and the sizes of models, by the last part of their ids, which is how their folders are usually called."""

CLIPS: Mapping[str, Published] = {
    "clip-vit-large-patch14": Published(
        "openai/clip-vit-large-patch14", lambda folder: published.clip(folder, large=False)
    ),
    "PickScore_v1": Published("yuvalkirstain/PickScore_v1", lambda folder: published.clip(folder, large=True)),
}
"""The sizes of CLIP models, by the last part of their ids."""


@dataclass(frozen=True, kw_only=True)
class Sized:
    """A run that can be planned here; `names` maps the folders of stand-ins to what the config calls them.

    `notes` has a line for each model that is not here and is planned by its published sizes.
    """

    run: Run
    notes: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    def named(self, planned: Plan) -> Plan:
        """Return a plan in the names of the config."""

        def renamed(sizes: Mapping[str, int]) -> dict[str, int]:
            return {self._name(text): size for text, size in sizes.items()}

        roles = [
            dataclasses.replace(role, held=renamed(role.held), phases=renamed(role.phases), beside=renamed(role.beside))
            for role in planned.roles
        ]
        return dataclasses.replace(planned, roles=tuple(roles))

    def _name(self, text: str) -> str:
        for folder, name in self.names.items():
            text = text.replace(folder, name)
        return text


@contextlib.contextmanager
def sized(run: Run) -> Iterator[Sized]:
    """Have stand-ins for the run's models that are not here, while inside.

    Raises the ModelError of a model that is not here and whose sizes are not known.
    """
    with tempfile.TemporaryDirectory() as temporary:
        notes: list[str] = []
        names: dict[str, str] = {}
        model = _model(run.model, Path(temporary) / "model", notes)

        def clip(reward: Reward) -> Reward:
            path = getattr(reward, "model", None)
            if not isinstance(path, str) or Path(path).name not in CLIPS or Path(path).exists():
                return reward
            known, folder = CLIPS[Path(path).name], Path(temporary) / f"clip-{Path(path).name}"
            if not folder.exists():
                notes.append(f"{path} is not here: planned by the published sizes of {known.id}")
                names[str(known.write(folder))] = path
            changed: Any = reward
            return cast(Reward, dataclasses.replace(changed, model=str(folder)))

        evaluation = dataclasses.replace(run.evaluation, rewards=tuple(map(clip, run.evaluation.rewards)))
        changed = dataclasses.replace(run, model=model, rewards=tuple(map(clip, run.rewards)), evaluation=evaluation)
        yield Sized(run=changed, notes=tuple(notes), names=names)


def _model(model: Model, place: Path, notes: list[str]) -> Model:
    try:
        models.folder_of(model, weights=False)
        return model
    except ModelError:
        kind, known = MODELS.get(Path(model.path).name, (None, None))
        if known is None or kind != model.kind or (Path(model.path) / "model_index.json").exists():
            raise
    notes.append(
        f"{model.path} is not here: planned by the published sizes of {known.id}. "
        f"For its own: {hub.command(known.id, weights=False)}"
    )
    return dataclasses.replace(model, path=str(known.write(place)))
