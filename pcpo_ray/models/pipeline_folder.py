"""A pipeline's folder in diffusers' format: its index, and the parts loaded with all of their weights."""

import importlib
import json
import shutil
from collections.abc import Collection, Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcpo_ray.config import Model
from pcpo_ray.errors import ModelError
from pcpo_ray.models import UNUSED, files, settings, single_file
from pcpo_ray.models.described import is_part, read_json


class PipelineFolder:
    """The folder of a pipeline of one class, whose denoising network is its `part`."""

    def __init__(self, folder: Path, model: Model, pipeline_class: str, part: str) -> None:
        self.folder, self.model, self.pipeline_class, self.part = folder, model, pipeline_class, part
        self.encoders = [name for name, there in self.parts().items() if there and name.startswith("text_encoder")]

    def parts(self) -> dict[str, bool]:
        """Return the index's parts, and whether the folder has them (SD3 works without T5)."""
        return {name: value[0] is not None for name, value in self.index().items() if is_part(value)}

    def index(self) -> dict[str, Any]:
        """Read model_index.json."""
        found: dict[str, Any] = json.loads((self.folder / "model_index.json").read_text(encoding="utf-8"))
        return found

    def source(self, part: str) -> str:
        """Name the files of a part's weights, for errors."""
        file = self.model.single_file
        return str(self.folder / part) if file is None else f"model.single_file={file!r} or {self.folder / part}"

    def load(self, left_out: Collection[str]) -> Any:
        """Load the pipeline onto the CPU, without some of its parts. Raises ModelError."""
        import diffusers

        # diffusers must be told of every part that it should not look for
        missing: dict[str, Any] = {
            name: None for name, there in self.parts().items() if not there or name in left_out or name in UNUSED
        }
        if "safety_checker" in missing:
            missing["requires_safety_checker"] = False
        pipeline_class, dtype = getattr(diffusers, self.pipeline_class), getattr(torch, self.model.dtype)
        if self.model.single_file is not None:
            loaded = single_file.load(pipeline_class, Path(self.model.single_file), self.folder, dtype, missing)
        else:
            try:
                networks = {name: self._network(name, dtype) for name in self._networks() if name not in missing}
                loaded = pipeline_class.from_pretrained(
                    self.folder, dtype=dtype, variant=self.model.variant, local_files_only=True, **missing, **networks
                )
            except ModelError:
                raise
            except Exception as error:  # a truncated file raises whatever its format's reader raises
                raise ModelError(f"{self.folder} cannot be loaded as a {self.pipeline_class}: {error}") from error
        self._check_vocabularies(loaded)
        return loaded

    def _check_vocabularies(self, pipeline: Any) -> None:
        """Raise ModelError for a tokenizer with more tokens than its text encoder has rows for."""
        for name in self.encoders:
            encoder = getattr(pipeline, name)
            tokenizer = getattr(pipeline, name.replace("text_encoder", "tokenizer"), None)
            tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor for images too
            if encoder is None or not isinstance(tokenizer, Sized):
                continue
            rows = encoder.get_input_embeddings().num_embeddings
            if len(tokenizer) > rows:
                raise ModelError(
                    f"the tokenizer of {self.source(name)} has {len(tokenizer)} tokens, and the text encoder rows for "
                    f"{rows}; expected at most those: a token was added to one of them, or they are of two models; "
                    "copy both again from one place"
                )

    def _networks(self) -> list[str]:
        """List the parts that are loaded one by one, to check that config and weights belong together."""
        libraries = {name: "transformers" for name in self.encoders} | {self.part: "diffusers", "vae": "diffusers"}
        index = self.index()
        return [name for name, library in libraries.items() if name in index and index[name][0] == library]

    def _network(self, name: str, dtype: torch.dtype) -> nn.Module:
        """Load a part with exactly the weights of its files.

        The libraries would initialise weights that the files lack, and drop those unknown to the config. Raises
        ModelError for either.
        """
        library, kind = self.index()[name]
        network_class, path = getattr(importlib.import_module(library), kind), self.folder / name / "config.json"
        try:
            found, told = network_class.from_pretrained(
                path.parent,
                dtype=dtype,
                variant=self.model.variant if self.model.variant in files.variants(path.parent) else None,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:
            why = settings.suspects(path, read_json(path), network_class)
            raise ModelError(f"{path.parent} cannot be loaded as a {kind}: {error}{why}") from error
        # an encoder's files may hold the rest of a larger model: a decoder or another tower
        own = {child for child, _ in found.named_children()} if library == "transformers" else None
        dropped = [
            key
            for key in told["unexpected_keys"]
            if not key.endswith("position_ids") and (own is None or key.partition(".")[0] in own)
        ]
        for keys, what in ((told["missing_keys"], "lack"), (dropped, "hold")):
            if keys:
                raise ModelError(
                    f"the weights of {self.folder / name} {what} {len(keys)} parameters that its config.json "
                    f"{'describes' if what == 'lack' else 'has no place for'}, such as {sorted(keys)[:3]}: they are of "
                    "another network than the config; copy both again from one place"
                )
        network: nn.Module = found
        return network

    def whole(self, network: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
        """Make a copy of the denoising network with these parameters: a rank's own may hold only parts of them."""
        import diffusers
        from accelerate import init_empty_weights

        with init_empty_weights():
            whole: nn.Module = getattr(diffusers, self.index()[self.part][1]).from_config(network.config)
        buffers = {name: value for name, value in network.named_buffers() if name in whole.state_dict()}
        dtype = getattr(torch, self.model.dtype)  # the parameters may be float32 masters
        written = {name: value.to(dtype) for name, value in parameters.items()}
        whole.load_state_dict({**buffers, **written}, assign=True)
        return whole

    def copy_unused(self, saved: Path) -> None:
        """Add the parts that were never loaded to a saved pipeline."""
        own, path = self.index(), saved / "model_index.json"
        written = json.loads(path.read_text(encoding="utf-8"))
        for name in sorted(UNUSED & own.keys()):
            if (self.folder / name).is_dir() and self.model.single_file is None:
                shutil.copytree(self.folder / name, saved / name)
                written[name] = own[name]
        if "requires_safety_checker" in own:
            written["requires_safety_checker"] = own["requires_safety_checker"]
        path.write_text(json.dumps(written, indent=2), encoding="utf-8")
