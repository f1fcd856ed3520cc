"""Commands that fetch the published files of the shipped rewards to the places that a config names."""

import importlib.util
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pcpo_ray.config.base import PathMark
from pcpo_ray.config.rewards import Aesthetic, CustomReward, Hps, PickScore, Reward
from pcpo_ray.errors import RewardError

NETWORK = ("--include", "*.json", "--include", "*.txt", "--include", "model.safetensors")
PROCESSOR = NETWORK[:4]


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file or folder that a reward reads: the key that names it, its path, and the command that fetches it there."""

    key: str
    path: str
    command: str


def of(reward: Reward) -> Iterator[Fetched]:
    """Yield the published files that a reward reads."""
    match reward:
        case Aesthetic():
            yield _file(
                "head", reward.head, "camenduru/improved-aesthetic-predictor", "sac+logos+ava1-l14-linearMSE.pth"
            )
            if reward.weights is None and not PathMark(or_name=True).is_name(reward.model):
                yield _folder("model", reward.model, "openai/clip-vit-large-patch14", NETWORK)
        case PickScore():
            yield _folder("model", reward.model, "yuvalkirstain/PickScore_v1", NETWORK)
            if reward.processor is not None:
                clip = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
                yield _folder("processor", reward.processor, clip, PROCESSOR)
        case Hps():
            yield _file("weights", reward.weights, "xswu/HPSv2", reward.published[reward.kind])


def absent(reward: Reward) -> list[Fetched]:
    """List the published files of a reward that are not where its config says."""
    return [one for one in of(reward) if not Path(one.path).exists()]


def check(reward: Reward) -> None:
    """Check that the packages and the published files of a reward are there. Raises RewardError."""
    if isinstance(reward, CustomReward):
        return
    if reward.extra is not None:
        missing = [name for name in reward.extra.modules if importlib.util.find_spec(name) is None]
        if missing:
            raise RewardError(
                f"the reward {reward.name} needs {', '.join(missing)}, which is not installed; "
                f"pip install 'pcpo_ray[{reward.extra.name}]', here and where scorers run"
            )
    if files := absent(reward):
        raise RewardError(
            "\n".join(f"no {one.key} of {reward.name} at {one.path}; fetch it with: {one.command}" for one in files)
        )


def _file(key: str, path: str, repository: str, name: str) -> Fetched:
    """Make the command for one file, which comes under its published name."""
    folder = _shown(str(Path(path).parent))
    return Fetched(key=key, path=path, command=_command(repository, name, "--local-dir", folder))


def _folder(key: str, path: str, repository: str, patterns: tuple[str, ...]) -> Fetched:
    return Fetched(key=key, path=path, command=_command(repository, *patterns, "--local-dir", _shown(path)))


def _command(*words: str) -> str:
    return shlex.join(["hf", "download", *words])


def _shown(path: str) -> str:
    """Write a path below the working folder as one relative to it."""
    here = Path.cwd()
    return os.path.relpath(path, here) if Path(path).is_relative_to(here) else path
