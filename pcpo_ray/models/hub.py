"""Models of the Hugging Face Hub by their id, `owner/name`: found in huggingface_hub's own cache, else fetched into it.

Each process looks for itself, so that a worker on another machine takes what is in the cache there. Tokens, mirrors and
the cache's place are huggingface_hub's own: HF_TOKEN or `hf auth login`, HF_ENDPOINT, HF_HOME.
"""

import logging
import re
import shlex
from collections.abc import Callable, Collection
from pathlib import Path

from pcpo_ray.config.base import HUB_ID
from pcpo_ray.errors import ModelError

AWAY = re.compile("Connect|Timeout|Network|Proxy")
"""Names of the errors of HTTP clients for a server that does not answer."""

SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
"""Patterns of what `pcpo-ray plan` reads: configs, tokenizers and chat templates."""


def is_id(path: str) -> bool:
    """Return whether a model.path is an id of the hub: one slash, and no folder of that name."""
    return HUB_ID.fullmatch(path) is not None and not Path(path).exists()


def command(repository: str, *, weights: bool = True, variant: str | None = None) -> str:
    """Return the command that fetches a model in diffusers' format, or all of it but the weights."""
    included = [*SETTINGS, *(["*/*.safetensors"] if weights else [])]
    excluded = ["*fp16*", "*non_ema*", "safety_checker/*"] if weights and variant is None else []
    words = [(f"--{what}", one) for what, names in (("include", included), ("exclude", excluded)) for one in names]
    return shlex.join(["hf", "download", repository, *(word for both in words for word in both)])


def cached(repository: str) -> Path | None:
    """Return the folder of a model in the cache; None where it has no model_index.json of it."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "model_index.json")
    return Path(found).parent if isinstance(found, str) else None


def found(
    repository: str, check: Callable[[Path], None], *, weights: bool, variant: str | None, unused: Collection[str]
) -> Path:
    """Return the model's folder in the cache, fetched if what is there does not pass `check`.

    Raises ModelError, with the command that fetches it, where it can be neither found nor fetched.
    """
    from huggingface_hub import constants

    fetch = command(repository, weights=weights, variant=variant)
    folder, why = cached(repository), f"it is not in the cache {constants.HF_HUB_CACHE}"
    if folder is not None:
        try:
            check(folder)
            return folder
        except ModelError as error:
            why = str(error)
    if constants.HF_HUB_OFFLINE:
        raise _missing(repository, f"{why}, and HF_HUB_OFFLINE is set", fetch)
    try:
        folder = _fetched(repository, weights=weights, variant=variant, unused=unused)
    except Exception as error:  # of the network, the hub and its client, each with errors of its own
        raise _missing(repository, f"{why}, and {_hindrance(error, repository)}", fetch) from error
    check(folder)
    return folder


def _hindrance(error: BaseException, repository: str) -> str:
    """Say in words why a model could not be fetched: their libraries wrap one error in another."""
    from huggingface_hub import errors

    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None and seen not in chain:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    if any(isinstance(one, errors.GatedRepoError) for one in chain):
        return f"it is gated: accept its terms at https://huggingface.co/{repository}, then hf auth login"
    if any(isinstance(one, errors.RepositoryNotFoundError) for one in chain):
        return "the hub has no model of that name, or it is a private one of somebody else's"
    away = (ConnectionError, TimeoutError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
    if any(isinstance(one, away) or AWAY.search(type(one).__name__) for one in chain):
        return "the hub cannot be reached from here"
    return f"it could not be fetched: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200}"


def _fetched(repository: str, *, weights: bool, variant: str | None, unused: Collection[str]) -> Path:
    """Fetch what is read of a model: the parts that are used, safetensors rather than pickles, one variant."""
    if not weights:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, allow_patterns=list(SETTINGS)))
    from diffusers import DiffusionPipeline

    left_out = dict.fromkeys(unused)
    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    before = logger.level
    logger.setLevel(logging.ERROR)  # of a hub that is away we tell ourselves
    try:
        return Path(DiffusionPipeline.download(repository, variant=variant, **left_out))
    finally:
        logger.setLevel(before)


def _missing(repository: str, why: str, fetch: str) -> ModelError:
    return ModelError(
        f"model.path {repository!r}: no folder {Path(repository).absolute()}; on the Hugging Face Hub: {why}. "
        f"Fetch it with: {fetch} (a gated one needs hf auth login first), or give a folder in diffusers' format, with "
        "a model_index.json, or the name of a shipped model"
    )
