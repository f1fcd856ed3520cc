"""Files at a URL, through pyarrow's filesystems: s3://, gs://, abfs://, file:// and whatever else pyarrow takes.

Credentials come from the environment of the process (AWS_ACCESS_KEY_ID, a role, GOOGLE_APPLICATION_CREDENTIALS, ...).
"""

import contextlib
import logging
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import tenacity

from pcpo_ray.errors import AwayError, RunError
from pcpo_ray.process.deadlines import within
from pcpo_ray.runs import filesystems
from pcpo_ray.runs.conditional import Conditions, Seen, UnconditionalError
from pcpo_ray.runs.urls import checked, is_plain, shown

ANSWER = 25.0
"""Seconds to wait for an answer to anything but a transfer; pyarrow itself may try for minutes."""

PARALLEL = 8
"""Files in transfer at once."""

CHUNK = 8 * 2**20

WHOLE = 64 * 2**20
"""Bytes up to which a file is read whole before it is sent, so that a failing disk sends nothing."""

PATIENCE = 300.0
"""Seconds for which a run under way retries storage that is unreachable."""

OWNED = 10
"""Tries to write a file that others write at the same time."""

UNREACHED = (
    *("NETWORK_CONNECTION", "UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_TIMEOUT", "no answer"),
    *("curlCode", "CURL error", "error sending request"),
)
BUSY = (
    *("SLOW_DOWN", "THROTTLING", "INTERNAL_FAILURE", "InternalError", "HTTP status 5", "HTTP response code 5"),
    "non-2xx status code: 5",
)
"""Words in the messages of failures that pass by themselves."""

REMEDIES = {
    UNREACHED: "see that it can be reached from this machine: its address, endpoint_override, region, proxies",
    ("NO_SUCH_BUCKET", "bucket does not exist", "Bucket not found"): "make the bucket, or give the URL of another",
    (
        *("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID"),
        *("EXPIRED_TOKEN", "PERMISSION_DENIED", "UNAUTHENTICATED", "HTTP response code 403", "HTTP status 403"),
        *("OAuth2", "AuthenticationException", "Permission denied"),
    ): "give this process credentials that may list, read, write and delete there, in its environment "
    "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or the machine's role)",
}
"""Remedies, by words in the failure's message."""

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def patiently(seconds: float = PATIENCE) -> tenacity.Retrying:
    """Retry what raises AwayError, with growing pauses; after `seconds` the AwayError is raised."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(AwayError),
        stop=tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_random_exponential(multiplier=1, max=15),
        before_sleep=tenacity.before_sleep_log(log, logging.WARNING),
        reraise=True,
    )


class Storage:
    """The files below a URL, by their names relative to it, with slashes.

    Every method raises RunError with the URL, the cause and a remedy, within 30 seconds where nothing answers.
    Where a retry may help, it is an AwayError. Keys that no file below a folder could have are left alone.
    """

    def __init__(self, url: str) -> None:
        self.parts = checked(url)
        self.url = url.rstrip("/")
        self.place = shown(self.url)

    def names(self, below: str = "") -> list[str]:
        """List all files, or the files below a folder; an absent folder has none."""
        from pyarrow.fs import FileSelector

        def listed() -> list[str]:
            filesystem, root = self._opened
            try:
                found = filesystem.get_file_info(FileSelector(self._path(below), recursive=True))
            except (FileNotFoundError, NotADirectoryError):
                return []
            names = [info.path[len(root) + 1 :] for info in found if info.is_file]
            return sorted(name for name in names if is_plain(name))

        return self._answer(listed, "listed")

    def there(self, names: Iterable[str]) -> list[str]:
        """Return the names that exist."""
        wanted = list(names)

        def looked() -> list[str]:
            filesystem, _ = self._opened
            found = filesystem.get_file_info([self._path(name) for name in wanted])
            return [name for name, info in zip(wanted, found, strict=True) if info.is_file]

        return self._answer(looked, "read")

    def folders(self) -> list[str]:
        """List the folders directly below the URL."""
        from pyarrow.fs import FileSelector, FileType

        def listed() -> list[str]:
            filesystem, root = self._opened
            try:
                found = filesystem.get_file_info(FileSelector(root))
            except (FileNotFoundError, NotADirectoryError):
                return []
            return sorted(info.base_name for info in found if info.type == FileType.Directory)

        return self._answer(listed, "listed")

    def read(self, name: str) -> bytes | None:
        """Return a small file's content, None if it does not exist."""

        def content() -> bytes | None:
            filesystem, _ = self._opened
            try:
                with filesystem.open_input_stream(self._path(name)) as file:
                    found: bytes = file.read()
                return found
            except FileNotFoundError:
                return None

        return self._answer(content, "read")

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, whole or not at all."""
        self._answer(lambda: self._write(name, content), "written")

    @property
    def conditional(self) -> bool:
        """True if `replace` writes conditionally, as far as is known: a store may turn out not to."""
        return self._conditions.there

    def seen(self, name: str) -> Seen:
        """Return a small file as it is now, for `replace`."""

        def looked() -> Seen:
            try:
                return self._conditions.read(name)
            except UnconditionalError as error:
                found = Seen(self.read(name))  # first: where this fails too, it is another matter
                self._conditions.give_up(error)
                return found

        return self._answer(looked, "read") if self.conditional else Seen(self.read(name))

    def replace(self, name: str, content: bytes, seen: Seen, *, prove: bool = False) -> bool:
        """Write a small file if it is still what was seen. Return False, and write nothing, if it is not.

        Where the store has no conditional writes, it is written in any case; `prove` has the store show that it has.
        """
        if self.conditional:
            try:
                written = self._answer(lambda: self._conditions.write(name, content, seen), "written")
                if written and prove:
                    self._answer(lambda: self._conditions.check_heeded(name, content, seen), "written")
                return written
            except UnconditionalError as error:
                self.write(name, content)
                self._conditions.give_up(error)
                return True
        self.write(name, content)
        return True

    def write_as_owner(self, name: str, content: bytes, check: Callable[[], None]) -> None:
        """Write a small file over whatever is there, unless `check` raises as another process owns the place now.

        The look comes after the reading and before the writing, which is conditional: so nothing is lost of what a new
        owner wrote after its claim. What an earlier one leaves before that is written over.
        """
        for _ in range(OWNED):
            seen = self.seen(name)
            check()
            if self.replace(name, content, seen):
                return
        raise RunError(f"{self.place}/{name} is written by another process too, which owns nothing there; end it")

    def put(self, files: Mapping[str, Path], *, fresh: bool = False) -> None:
        """Copy files of this machine to the names. An older file of that name stays until the copy is complete.

        `fresh` says that nobody reads the names yet: a failed copy may leave a part of the file.
        """
        self._transfer(lambda name, path: self._put(name, path, fresh=fresh), files, "written")

    def get(self, files: Mapping[str, Path]) -> None:
        """Copy stored files to paths of this machine. Raises RunError for a name that leads out of the folder."""
        for name in files:
            if not is_plain(name):
                raise RunError(f"{self.place} has the name {name!r}, which no file below a folder has; delete it there")
        self._transfer(self._get, files, "read")

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; names that do not exist are skipped."""

        def deleted(name: str) -> None:
            filesystem, _ = self._opened
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_file(self._path(name))

        for name in names:
            self._answer(lambda name=name: deleted(name), "changed")  # type: ignore[misc]

    def delete_folder(self, name: str) -> None:
        """Delete a folder and its contents, if it exists."""

        def deleted() -> None:
            filesystem, _ = self._opened
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_dir(self._path(name))

        self._answer(deleted, "changed")

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """pyarrow's filesystem and the path of the URL in it."""
        return filesystems.opened(self.url, self.parts)

    @cached_property
    def _conditions(self) -> Conditions:
        return Conditions(self.parts, *self._answer(lambda: self._opened, "read"))

    def _path(self, name: str) -> str:
        _, root = self._opened
        return f"{root}/{name}" if name else root

    @property
    def _flat(self) -> bool:
        """True for an object store: it has no folders, and a file appears all at once when it is closed."""
        filesystem, _ = self._opened
        return filesystem.type_name in ("s3", "gcs", "abfs")

    def _write(self, name: str, content: bytes) -> None:
        filesystem, _ = self._opened
        with self._becoming(name, beside=not self._flat) as path, filesystem.open_output_stream(path) as file:
            file.write(content)

    def _put(self, name: str, path: Path, *, fresh: bool) -> None:
        if path.stat().st_size <= WHOLE:
            self._write(name, path.read_bytes())
            return
        filesystem, _ = self._opened
        # pyarrow cannot abort: closing the stream publishes what was sent until the disk failed, under the file's name
        with (
            self._becoming(name, beside=not (fresh and self._flat)) as sent,
            path.open("rb") as source,
            filesystem.open_output_stream(sent) as target,
        ):
            shutil.copyfileobj(source, target, CHUNK)

    @contextlib.contextmanager
    def _becoming(self, name: str, *, beside: bool) -> Iterator[str]:
        """Yield the path to write a file to: its own, or (`beside`) a temporary one, renamed at the end."""
        filesystem, _ = self._opened
        path = self._path(name)
        folder, _, last = path.rpartition("/")
        sent = f"{folder}/.{last}.{uuid.uuid4().hex}.unfinished" if beside else path
        if not self._flat:
            filesystem.create_dir(folder, recursive=True)
        try:
            yield sent
        except BaseException:
            if beside:
                with contextlib.suppress(OSError):
                    filesystem.delete_file(sent)
            raise
        if beside:
            filesystem.move(sent, path)

    def _get(self, name: str, path: Path) -> None:
        filesystem, _ = self._opened
        path.parent.mkdir(parents=True, exist_ok=True)
        with filesystem.open_input_stream(self._path(name)) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)

    def _transfer(self, copy: Callable[[str, Path], None], files: Mapping[str, Path], done: str) -> None:
        if not files:
            return
        from pyarrow.lib import ArrowException

        self._answer(lambda: self._opened, done)
        with ThreadPoolExecutor(min(PARALLEL, len(files))) as pool:
            started = [pool.submit(copy, name, path) for name, path in files.items()]
            try:
                for found in started:
                    found.result()
            except (OSError, ArrowException) as error:
                pool.shutdown(cancel_futures=True)
                raise self._error(error, done) from error

    def _answer(self, ask: Callable[[], Result], done: str) -> Result:
        """Return the answer of storage. Raises RunError if it fails or takes longer than ANSWER."""
        from pyarrow.lib import ArrowException

        try:
            return within(ANSWER, ask)
        except (OSError, ArrowException) as error:
            raise self._error(error, done) from error

    def _error(self, error: Exception, done: str) -> RunError:
        text = str(error).strip() or type(error).__name__
        cause = text.splitlines()[0].partition(" (Request ID")[0]
        remedy = next((remedy for words, remedy in REMEDIES.items() if any(word in text for word in words)), "fix that")
        endpoint = dict(parse_qsl(self.parts.query)).get("endpoint_override")
        at = f" (endpoint {endpoint})" if endpoint else ""
        away = any(word in text for word in (*UNREACHED, *BUSY))
        return (AwayError if away else RunError)(f"{self.place}{at} cannot be {done}: {cause[:500]}; {remedy}")
