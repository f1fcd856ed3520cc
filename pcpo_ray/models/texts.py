"""Encoded texts: in memory up to a limit, and on disk, one Arrow file per text, under a key of the encoders' files."""

import contextlib
import errno
import hashlib
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

from pcpo_ray.config import Model
from pcpo_ray.data.seeds import generator
from pcpo_ray.data.tensors import Conditioning, to_numpy
from pcpo_ray.errors import ModelError, PcpoError
from pcpo_ray.models import TEXT_PARTS, finite
from pcpo_ray.runs.disk import partial_path, retrying, sync

CHUNK = 1 << 24
FULL = (errno.ENOSPC, errno.EDQUOT)

PLAIN = "\0"
"""Begins a text that some kinds encode without their instruction, as the unconditional branch's is."""

log = logging.getLogger(__name__)

KEPT = 1 << 30
"""Bytes of encoded texts that a process keeps in memory: 250 texts for FLUX, 1,600 for SDXL."""


class KeptTexts:
    """The most recently used encoded texts, at most `limit` bytes of them."""

    def __init__(self, limit: int = KEPT) -> None:
        self.limit = limit
        self.size = 0
        self.rows: dict[str, Conditioning] = {}

    def __contains__(self, text: str) -> bool:
        return text in self.rows

    def get(self, text: str) -> Conditioning | None:
        """Return what `put` was given for the text, if it is still here."""
        found = self.rows.pop(text, None)
        if found is not None:
            self.rows[text] = found  # now the most recently used
        return found

    def put(self, text: str, encoded: Conditioning) -> None:
        """Keep the text unless it exceeds the limit by itself, and drop the least recently used ones."""
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
    """A cache on disk that processes may share: each file appears whole, by renaming, or not at all."""

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
        """Return what `put` was given for the text.

        Raises ModelError for a damaged file, OSError for one that cannot be read.
        """
        import pyarrow

        path = self.path(text)
        try:
            for attempt in retrying():
                with attempt:
                    content = path.read_bytes()
        except OSError as error:  # the path to the disk is at fault, not the text
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
        """Keep a text, unless another process has written it meanwhile.

        A full disk is reported once; texts are encoded again from then on. Raises ModelError for any other failure.
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
                f"model.text_cache={self.given!r}: an encoded text cannot be written to {path}: {error}; free "
                "some space or give permission to write there, name another folder, or set model.text_cache=null to "
                "keep texts in memory"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                made.unlink()

    def _say_full(self, path: Path, error: OSError) -> None:
        if not self.full:
            self.full = True
            log.warning(
                "model.text_cache=%r: an encoded text cannot be written to %s: %s; training continues, and texts that "
                "are not in memory are encoded again; free some space there",
                *(self.given, path, error.strerror or error),
            )


class Encoder(Protocol):
    """The side of a denoiser that encodes texts."""

    def text_encoders(self) -> AbstractContextManager[None]:
        """Keep the text encoders on the device while inside."""

    def encode_one(self, text: str) -> Conditioning:
        """Encode one text while the text encoders are on the device."""


class EncodedTexts:
    """The rows of texts: from memory, from the cache on disk if there is one, or from an encoder."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.dtype, self.folder = model.dtype, folder
        self.kept = KeptTexts()
        self.cache = None if model.text_cache is None else TextCache(model, folder)

    def rows(self, texts: Sequence[str], encoder: Encoder) -> dict[str, Conditioning]:
        """Return a row for each distinct text, even if memory cannot keep all of them."""
        found = {text: self._find(text) for text in texts}
        missing = [text for text, encoded in found.items() if encoded is None]
        found.update(self._encoded(missing, encoder))
        return {text: encoded for text, encoded in found.items() if encoded is not None}

    def prepare(self, texts: Sequence[str], encoder: Encoder) -> None:
        """Encode the texts that neither memory nor the cache holds.

        Workers that share a cache on disk and are given the same texts share the work.
        """
        missing = [text for text in dict.fromkeys(texts) if not self._holds(text)]
        random.SystemRandom().shuffle(missing)  # each worker in its own order, so that few encode the same text
        for _ in self._encoded(missing, encoder):
            pass

    def _encoded(self, texts: Sequence[str], encoder: Encoder) -> Iterator[tuple[str, Conditioning]]:
        """Encode and keep texts one by one; those that another worker has written meanwhile are read."""
        if not texts:
            return
        with torch.no_grad(), encoder.text_encoders():
            for text in texts:
                encoded = self._find(text)
                if encoded is None:
                    encoded = self._encode(text, encoder)
                    finite.check_text(encoded, text, self.dtype)
                    if self.cache is not None:
                        self.cache.put(text, encoded)
                    self.kept.put(text, encoded)
                yield text, encoded

    def _encode(self, text: str, encoder: Encoder) -> Conditioning:
        """Encode one text. Raises ModelError if the model's tokenizers or text encoders cannot."""
        try:
            return {name: row.cpu() for name, row in encoder.encode_one(text).items()}
        except (PcpoError, RuntimeError, OSError):  # torch's errors of the machine are among these
            raise
        except Exception as error:  # settings that do not go together raise whatever is met first
            raise ModelError(
                f"{text!r:.100} cannot be encoded with the tokenizers and text encoders of {self.folder}: "
                f"{type(error).__name__}: {error}; copy both again from the model they were made from"
            ) from error

    def _find(self, text: str) -> Conditioning | None:
        """Return the text's row from memory or the cache on disk."""
        encoded = self.kept.get(text)
        if encoded is None and self.cache is not None and text in self.cache:
            encoded = self.cache.get(text)
            finite.check_text(encoded, text, self.dtype, self.cache.path(text))
            self.kept.put(text, encoded)
        return encoded

    def _holds(self, text: str) -> bool:
        return text in self.kept or (self.cache is not None and text in self.cache)


def stand_in(name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Draw a row of noise that stands for an encoded text; a mask hides none of it."""
    if name.endswith("mask"):
        return torch.ones((1, *shape), dtype=torch.bool)
    return torch.randn((1, *shape), generator=generator("text", name)).to(dtype)


def fingerprint(model: Model, folder: Path) -> str:
    """Hash the model's kind, and its text encoders' and tokenizers' files, variant and dtype."""
    kind = model.denoiser or model.kind  # kinds that share an encoder read different layers of it
    digest = hashlib.blake2b(f"{kind}{model.dtype}{model.variant or ''}".encode(), digest_size=16)
    files = sorted(path for part in TEXT_PARTS for path in folder.glob(f"{part}*/**/*") if path.is_file())
    if model.single_file is not None:  # it may hold the encoders too
        files.append(Path(model.single_file))
    for path in files:
        digest.update((str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name).encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
