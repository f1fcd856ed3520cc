"""Encoded texts: in memory up to a bound, and on disk, an Arrow file a text, under a key of the encoders' own files."""

import contextlib
import errno
import hashlib
import logging
from pathlib import Path

import torch

from pcpo_ray.config import Model
from pcpo_ray.data.tensors import Conditioning, to_numpy
from pcpo_ray.errors import ModelError
from pcpo_ray.runs.disk import partial_path, retrying, sync

CHUNK = 1 << 24
FULL = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)

KEPT = 1 << 30
"""Bytes of encoded texts that stay in a process's memory: 250 of FLUX's, 1,600 of SDXL's."""


class KeptTexts:
    """The encoded texts that were asked for last, `limit` bytes of them at most."""

    def __init__(self, limit: int = KEPT) -> None:
        self.limit = limit
        self.size = 0
        self.rows: dict[str, Conditioning] = {}

    def __contains__(self, text: str) -> bool:
        return text in self.rows

    def get(self, text: str) -> Conditioning | None:
        """What `put` was given for the text, if it is still here."""
        found = self.rows.pop(text, None)
        if found is not None:
            self.rows[text] = found  # now the last to go
        return found

    def put(self, text: str, encoded: Conditioning) -> None:
        """Keep the text, unless it has no room by itself, and let go of what was not asked for the longest."""
        self._forget(text)
        self.rows[text] = encoded
        self.size += _bytes_of(encoded)
        while self.size > self.limit:
            self._forget(next(iter(self.rows)))

    def _forget(self, text: str) -> None:
        forgotten = self.rows.pop(text, None)
        if forgotten is not None:
            self.size -= _bytes_of(forgotten)


def _bytes_of(encoded: Conditioning) -> int:
    return sum(row.untyped_storage().nbytes() for row in encoded.values())


class TextCache:
    """Several processes may share one: a file appears whole, by renaming, or not at all."""

    def __init__(self, model: Model, folder: Path) -> None:
        assert model.text_cache is not None
        self.given = model.text_cache
        self.folder = Path(model.text_cache).expanduser() / fingerprint(model, folder)
        self.full = False

    def __contains__(self, text: str) -> bool:
        return self.path(text).is_file()

    def path(self, text: str) -> Path:
        return self.folder / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.arrow"

    def get(self, text: str) -> Conditioning:
        """What `put` was given for the text. Raises ModelError for a file that is damaged, OSError for one unread."""
        import pyarrow

        path = self.path(text)
        try:
            for attempt in retrying():
                with attempt:
                    content = path.read_bytes()
        except OSError as error:  # this machine's way to the disk, and not the text, is what is wrong
            raise OSError(
                f"{path}, a cached text of model.text_cache={self.given!r}, cannot be read on this machine: {error}"
            ) from error
        try:
            with pyarrow.ipc.open_file(content) as file:
                rows = file.read_all().to_pylist()
            return {
                row["name"]: torch.frombuffer(bytearray(row["data"]), dtype=getattr(torch, row["dtype"])).reshape(
                    row["shape"]
                )
                for row in rows
            }
        except (pyarrow.ArrowInvalid, KeyError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"{path}, a cached text of model.text_cache={self.given!r}, cannot be read: {error}; delete it"
            ) from error

    def put(self, text: str, conditioning: Conditioning) -> None:
        """Keep a text; of one that another process has kept meanwhile, its file stays.

        A full disk is said once, and texts are encoded anew from then on. Raises ModelError where nobody may write.
        """
        import pyarrow

        rows = []
        for name, tensor in conditioning.items():
            dtype, bits = to_numpy(tensor)
            rows.append({"name": name, "dtype": dtype, "shape": list(tensor.shape), "data": bits.tobytes()})
        table = pyarrow.Table.from_pylist(rows)
        path = self.path(text)
        made = partial_path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with pyarrow.ipc.new_file(made, table.schema) as file:
                file.write_table(table)
            if text not in self:
                sync(made)
                made.replace(path)
        except OSError as error:
            if text in self:  # another process was first
                return
            if error.errno in FULL:
                self._say_full(path, error)
                return
            raise ModelError(
                f"model.text_cache={self.given!r}: an encoded text cannot be written to {path}: {error}; make room or "
                "give leave to write there, name another folder, or set model.text_cache=null to keep texts in memory"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                made.unlink()

    def _say_full(self, path: Path, error: OSError) -> None:
        if not self.full:
            self.full = True
            log.warning(
                "model.text_cache=%r: an encoded text cannot be written to %s: %s; it goes on without, encoding texts "
                "anew where memory has not kept them; make room there",
                *(self.given, path, error.strerror or error),
            )


def fingerprint(model: Model, folder: Path) -> str:
    """Of the bytes of the text encoders and tokenizers, of which of them are read, and of the dtype they compute in."""
    digest = hashlib.blake2b(f"{model.dtype}{model.variant or ''}".encode(), digest_size=16)
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
