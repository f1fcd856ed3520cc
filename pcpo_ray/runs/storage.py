"""Files at a URL, through pyarrow's filesystems: s3://, gs://, abfs://, file:// and whatever else pyarrow takes.

Credentials come from the environment of the process (AWS_ACCESS_KEY_ID, a role, GOOGLE_APPLICATION_CREDENTIALS, ...),
never from the URL. Options stand in its query, as with pyarrow: `?endpoint_override=HOST:PORT&scheme=http&region=...`.
"""

import contextlib
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

import tenacity

from pcpo_ray.errors import AwayError, RunError

ANSWER = 25.0
"""Seconds in which storage must answer whatever is no transfer; pyarrow itself may try for minutes."""

CONNECT, SILENCE, ATTEMPTS = 5.0, 6.0, 3
"""S3: seconds in which it must be reached, seconds that it may send nothing, and how often a request is sent."""

RETRY = timedelta(seconds=10)
"""Google Cloud Storage: how long its client tries again."""

AT_ONCE = 8
"""Files on their way."""

CHUNK = 8 * 2**20

WHOLE = 64 * 2**20
"""Bytes of a file up to which it is read first and then sent, so that a disk that fails sends nothing."""

PATIENCE = 300.0
"""Seconds in which a run under way asks storage again that is away."""

S3_OPTIONS = ("region", "scheme", "endpoint_override", "tls_ca_file_path", "force_virtual_addressing")

UNREACHED = (
    *("NETWORK_CONNECTION", "UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_TIMEOUT", "no answer"),
    *("curlCode", "CURL error"),
)
BUSY = ("SLOW_DOWN", "THROTTLING", "INTERNAL_FAILURE", "InternalError", "HTTP status 5", "HTTP response code 5")
"""Words of causes that pass by themselves."""

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
"""What to do, by words of the cause."""

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def is_url(text: str) -> bool:
    """Whether a text is a URL and no path."""
    return "://" in text


def child(url: str, name: str) -> str:
    """The URL of what lies below another one; the options stay."""
    path, mark, query = url.partition("?")
    return f"{path.rstrip('/')}/{quote(name)}{mark}{query}"


def is_plain(name: str) -> bool:
    """Whether a name is that of a file below a folder, on any machine; keys of a bucket may be otherwise."""
    return "\\" not in name and "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def shown(url: str) -> str:
    """A URL as messages name it: without its options."""
    return url.partition("?")[0]


def patiently(seconds: float = PATIENCE) -> tenacity.Retrying:
    """Attempts at what storage is asked, further and further apart, while it is away. At the end raises AwayError."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(AwayError),
        stop=tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_random_exponential(multiplier=1, max=15),
        before_sleep=tenacity.before_sleep_log(log, logging.WARNING),
        reraise=True,
    )


class Storage:
    """The files below a URL, by their names relative to it, with slashes.

    Every method raises RunError that names the URL, the cause and what to do, within 30 seconds where nothing is there;
    AwayError where it may help to ask again. Keys of a bucket that no file below a folder could have are left alone.
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
            names = [info.path[len(root) + 1 :] for info in found if info.is_file]
            return sorted(name for name in names if is_plain(name))

        return self._answer(listed, "listed")

    def there(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are there."""
        wanted = list(names)

        def looked() -> list[str]:
            filesystem, _ = self._opened
            found = filesystem.get_file_info([self._path(name) for name in wanted])
            return [name for name, info in zip(wanted, found, strict=True) if info.is_file]

        return self._answer(looked, "read")

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

        self._answer(lambda: self._write(name, content), "written")

    def put(self, files: Mapping[str, Path], *, fresh: bool = False) -> None:
        """Copy files of this machine to the names. What a name stood for stays until the copy is whole.

        `fresh` are names that nobody counts on yet: of one that fails, a part may be there.
        """
        self._transfer(lambda name, path: self._put(name, path, fresh=fresh), files, "written")

    def get(self, files: Mapping[str, Path]) -> None:
        """Copy what the names stand for to paths of this machine. Raises RunError for a name that leads elsewhere."""
        for name in files:
            if not is_plain(name):
                raise RunError(f"{self.place} has the name {name!r}, which no file below a folder has; delete it there")
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

    def _write(self, name: str, content: bytes) -> None:
        filesystem, _ = self._opened
        with self._becoming(name, beside=not self._flat) as path, filesystem.open_output_stream(path) as file:
            file.write(content)

    def _put(self, name: str, path: Path, *, fresh: bool) -> None:
        if path.stat().st_size <= WHOLE:
            self._write(name, path.read_bytes())
            return
        filesystem, _ = self._opened
        # pyarrow cannot leave off: what was sent until a disk failed is there when the stream closes, under its name
        with (
            self._becoming(name, beside=not (fresh and self._flat)) as sent,
            path.open("rb") as source,
            filesystem.open_output_stream(sent) as target,
        ):
            shutil.copyfileobj(source, target, CHUNK)

    @contextlib.contextmanager
    def _becoming(self, name: str, *, beside: bool) -> Iterator[str]:
        """The path to write what becomes a name's content at the end, or nothing: its own, or one beside it."""
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
        away = any(word in text for word in (*UNREACHED, *BUSY))
        return (AwayError if away else RunError)(f"{self.place}{at} cannot be {done}: {cause[:500]}; {remedy}")


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
