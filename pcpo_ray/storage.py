"""Files at a URL, through pyarrow's filesystems: s3://, gs://, abfs://, file:// and whatever else pyarrow takes.

Credentials come from the environment of the process (AWS_ACCESS_KEY_ID, a role, GOOGLE_APPLICATION_CREDENTIALS, ...),
never from the URL. Options stand in its query, as with pyarrow: `?endpoint_override=HOST:PORT&scheme=http&region=...`.
"""

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from pcpo_ray.errors import RunError

ANSWER = 25.0
"""Seconds in which storage must answer whatever is no transfer; pyarrow itself may try for minutes."""

CONNECT, SILENCE, ATTEMPTS = 5.0, 6.0, 3
"""S3: seconds in which it must be reached, seconds that it may send nothing, and how often a request is sent."""

RETRY = timedelta(seconds=10)
"""Google Cloud Storage: how long its client tries again."""

AT_ONCE = 8
"""Files on their way."""

CHUNK = 8 * 2**20

S3_OPTIONS = ("region", "scheme", "endpoint_override", "tls_ca_file_path", "force_virtual_addressing")

REMEDIES = {
    (
        *("NETWORK_CONNECTION", "UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_TIMEOUT", "no answer"),
        *("curlCode", "CURL error"),
    ): "see that it can be reached from this machine: its address, endpoint_override, region, proxies",
    ("NO_SUCH_BUCKET", "bucket does not exist", "Bucket not found"): "make the bucket, or give the URL of another",
    (
        *("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID"),
        *("EXPIRED_TOKEN", "PERMISSION_DENIED", "UNAUTHENTICATED", "HTTP response code 403", "HTTP status 403"),
        *("OAuth2", "AuthenticationException", "Permission denied"),
    ): "give this process credentials that may list, read, write and delete there, in its environment "
    "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, or the machine's role)",
}
"""What to do, by words of the cause."""

Result = TypeVar("Result")


def is_url(text: str) -> bool:
    """Whether a text is a URL and no path."""
    return "://" in text


def child(url: str, name: str) -> str:
    """The URL of what lies below another one; the options stay."""
    path, mark, query = url.partition("?")
    return f"{path.rstrip('/')}/{quote(name)}{mark}{query}"


def shown(url: str) -> str:
    """A URL as messages name it: without its options."""
    return url.partition("?")[0]


class Storage:
    """The files below a URL, by their names relative to it, with slashes.

    Every method raises RunError that names the URL, the cause and what to do; within 30 seconds where nothing is there.
    """

    def __init__(self, url: str) -> None:
        self.parts = _checked(url)
        self.url = url.rstrip("/")
        self.place = shown(self.url)

    def names(self, below: str = "") -> list[str]:
        """Every file, or those below a folder; none where nothing is there."""
        from pyarrow.fs import FileSelector

        def listed() -> list[str]:
            filesystem, root = self._opened
            try:
                found = filesystem.get_file_info(FileSelector(self._path(below), recursive=True))
            except (FileNotFoundError, NotADirectoryError):
                return []
            return sorted(info.path[len(root) :].lstrip("/") for info in found if info.is_file)

        return self._answer(listed, "listed")

    def folders(self) -> list[str]:
        """The names of the folders right here."""
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
        """A small file's content; None where it is not there."""

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

        def written() -> None:
            with self._writing(name) as file:
                file.write(content)

        self._answer(written, "written")

    def put(self, files: Mapping[str, Path]) -> None:
        """Copy files of this machine to the names, each whole or not at all."""
        self._transfer(self._put, files, "written")

    def get(self, files: Mapping[str, Path]) -> None:
        """Copy what the names stand for to paths of this machine."""
        self._transfer(self._get, files, "read")

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; those that are not there are none."""

        def deleted(name: str) -> None:
            filesystem, _ = self._opened
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_file(self._path(name))

        for name in names:
            self._answer(lambda name=name: deleted(name), "changed")  # type: ignore[misc]

    def delete_folder(self, name: str) -> None:
        """Delete a folder with all that is in it, if it is there."""

        def deleted() -> None:
            filesystem, _ = self._opened
            with contextlib.suppress(FileNotFoundError):
                filesystem.delete_dir(self._path(name))

        self._answer(deleted, "changed")

    # -- how ------------------------------------------------------------------------------------------------------

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """pyarrow's filesystem and the path of the URL in it."""
        from pyarrow import fs

        if self.parts.scheme == "s3":
            return self._s3()
        url = self.url
        if self.parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in url:
            url += f"{'&' if self.parts.query else '?'}retry_limit_seconds={RETRY.seconds}"
        filesystem, root = fs.FileSystem.from_uri(url)
        return filesystem, root.rstrip("/")

    def _s3(self) -> tuple[Any, str]:
        """As pyarrow's own, with limits: its from_uri has none that end within minutes."""
        from pyarrow import fs

        options: dict[str, Any] = dict(parse_qsl(self.parts.query))
        address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        if address and "endpoint_override" not in options:
            options["scheme"], _, options["endpoint_override"] = address.rstrip("/").partition("://")
        options["force_virtual_addressing"] = options.get("force_virtual_addressing", "false").lower() == "true"
        bounded = {
            "connect_timeout": CONNECT,
            "request_timeout": SILENCE,
            "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            **options,
        }
        bucket = self.parts.netloc
        if "region" not in options:
            named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            if named is None and "endpoint_override" not in options:
                named = _region(bucket, fs.S3FileSystem(region="us-east-1", **bounded))
            bounded["region"] = named or "us-east-1"
        return fs.S3FileSystem(**bounded), f"{bucket}{unquote(self.parts.path)}".rstrip("/")

    def _path(self, name: str) -> str:
        _, root = self._opened
        return f"{root}/{name}" if name else root

    @property
    def _flat(self) -> bool:
        """Whether there are no folders, and a file is there at once when it is written."""
        filesystem, _ = self._opened
        return filesystem.type_name in ("s3", "gcs", "abfs")

    def _writing(self, name: str) -> "_Writing":
        filesystem, _ = self._opened
        return _Writing(filesystem, self._path(name), flat=self._flat)

    def _put(self, name: str, path: Path) -> None:
        with path.open("rb") as source, self._writing(name) as target:
            shutil.copyfileobj(source, target, CHUNK)

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
        with ThreadPoolExecutor(min(AT_ONCE, len(files))) as pool:
            started = [pool.submit(copy, name, path) for name, path in files.items()]
            try:
                for found in started:
                    found.result()
            except (OSError, ArrowException) as error:
                pool.shutdown(cancel_futures=True)
                raise self._error(error, done) from error

    def _answer(self, ask: Callable[[], Result], done: str) -> Result:
        """What storage answers, in time."""
        from pyarrow.lib import ArrowException

        try:
            return _within(ANSWER, ask)
        except (OSError, ArrowException) as error:
            raise self._error(error, done) from error

    def _error(self, error: Exception, done: str) -> RunError:
        text = str(error).strip() or type(error).__name__
        cause = text.splitlines()[0].partition(" (Request ID")[0]
        remedy = next((what for words, what in REMEDIES.items() if any(word in text for word in words)), "mend that")
        endpoint = dict(parse_qsl(self.parts.query)).get("endpoint_override")
        at = f" (endpoint {endpoint})" if endpoint else ""
        return RunError(f"{self.place}{at} cannot be {done}: {cause[:500]}; {remedy}")


class _Writing:
    """A file that is written; where the filesystem would show half of it, beside its place until it is whole."""

    def __init__(self, filesystem: Any, path: str, *, flat: bool) -> None:
        self.filesystem, self.path, self.flat = filesystem, path, flat
        folder, _, name = path.rpartition("/")
        self.beside = path if flat else f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
        if not flat:
            filesystem.create_dir(folder, recursive=True)

    def __enter__(self) -> Any:
        self.file = self.filesystem.open_output_stream(self.beside)
        return self.file

    def __exit__(self, kind: object, *rest: object) -> None:
        self.file.close()
        if kind is not None:
            self.filesystem.delete_file(self.beside)  # pyarrow cannot leave off: what was closed is there
        elif not self.flat:
            self.filesystem.move(self.beside, self.path)


def _checked(url: str) -> SplitResult:
    """The parts of a URL. Raises RunError for one that carries a secret, and for options that are none."""
    parts = urlsplit(url)
    if not parts.scheme or not (parts.netloc or parts.path.strip("/")):
        raise RunError(f"got the URL {shown(url)!r}; expected one such as s3://bucket/runs, gs://bucket/runs")
    options = dict(parse_qsl(parts.query))
    secret = any(word in option for option in options for word in ("key", "secret", "token", "password"))
    if secret or parts.password is not None or (parts.scheme == "s3" and parts.username):
        raise RunError(
            f"the URL {parts.scheme}://... holds credentials, which would end up in logs; give them in the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if parts.scheme == "s3" and (unknown := sorted(options.keys() - set(S3_OPTIONS))):
        raise RunError(f"the URL {shown(url)} has the options {unknown}; expected of {list(S3_OPTIONS)}")
    return parts


def _region(bucket: str, reached: Any) -> str:
    """Where a bucket is. Raises OSError, in seconds, where S3 cannot be reached."""
    from pyarrow import fs

    try:
        reached.get_file_info(bucket)
    except OSError as error:
        if "NETWORK_CONNECTION" in str(error):
            raise
    found: str = fs.resolve_s3_region(bucket)  # which would try for minutes where nothing answers
    return found


def _within(seconds: float, ask: Callable[[], Result]) -> Result:
    """An answer, or TimeoutError; who asked in vain is left behind, as nothing can stop it."""
    found: list[Result] = []
    failed: list[BaseException] = []

    def asking() -> None:
        try:
            found.append(ask())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=asking, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return found[0]
