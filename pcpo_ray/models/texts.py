"""Encoded texts on disk: an Arrow file a text, under a key of the encoders' own files."""

import hashlib
import os
from pathlib import Path

import torch

from pcpo_ray.config import Model
from pcpo_ray.errors import ModelError
from pcpo_ray.trajectory import Conditioning, to_numpy

CHUNK = 1 << 24


class TextCache:
    """Several processes may share one: a file appears whole, by renaming, or not at all."""

    def __init__(self, model: Model, folder: Path) -> None:
        assert model.text_cache is not None
        self.folder = Path(model.text_cache).expanduser() / fingerprint(model, folder)

    def __contains__(self, text: str) -> bool:
        return self.path(text).is_file()

    def path(self, text: str) -> Path:
        return self.folder / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.arrow"

    def get(self, text: str) -> Conditioning:
        """What `put` was given for the text. Raises ModelError for a file that is damaged."""
        import pyarrow

        path = self.path(text)
        try:
            with pyarrow.ipc.open_file(path) as file:
                rows = file.read_all().to_pylist()
            return {
                row["name"]: torch.frombuffer(bytearray(row["data"]), dtype=getattr(torch, row["dtype"])).reshape(
                    row["shape"]
                )
                for row in rows
            }
        except (pyarrow.ArrowInvalid, OSError, KeyError, RuntimeError, ValueError) as error:
            raise ModelError(f"{path}, a cached text, cannot be read: {error}; delete it") from error

    def put(self, text: str, conditioning: Conditioning) -> None:
        import pyarrow

        rows = []
        for name, tensor in conditioning.items():
            dtype, bits = to_numpy(tensor)
            rows.append({"name": name, "dtype": dtype, "shape": list(tensor.shape), "data": bits.tobytes()})
        table = pyarrow.Table.from_pylist(rows)
        path = self.path(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        with pyarrow.ipc.new_file(beside, table.schema) as file:
            file.write_table(table)
        beside.replace(path)


def fingerprint(model: Model, folder: Path) -> str:
    """Of the bytes of the text encoders and tokenizers, and of the dtype they compute in."""
    digest = hashlib.blake2b(model.dtype.encode(), digest_size=16)
    parts = ("text_encoder*", "tokenizer*")
    files = sorted(path for part in parts for path in folder.glob(f"{part}/**/*") if path.is_file())
    if model.single_file is not None:  # it may hold the encoders too
        files.append(Path(model.single_file))
    for path in files:
        digest.update((str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name).encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
