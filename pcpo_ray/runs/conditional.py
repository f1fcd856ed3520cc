"""Conditional writes to object storage, through obstore: a file is written only if it is still what the writer saw.

pyarrow, which does all else with storage, has none. S3, Google Cloud Storage and Azure have them (If-None-Match,
If-Match, generations); disks and HDFS have not. A store that does not heed them is told once and named.
"""

import configparser
import logging
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

from pcpo_ray.runs.filesystems import s3_options

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")

CLIENT: Any = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=8)}
RETRY: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=8)}
"""Time limits that together end within storage.ANSWER."""

BUSY = "status code: 5"
UNABLE = "status code: 501"
"""Words in failures that pass by themselves, and in the answer of a store without conditional writes."""

GIVEN = (
    *("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
)
"""Variables by which obstore finds credentials for S3 itself."""

AZURE = re.compile(r"[^@:]+@[^@:.]+\.dfs\.core\.windows\.net")
"""Hosts of abfs:// that obstore reads as pyarrow does."""

log = logging.getLogger(__name__)

_proven: set[str] = set()
_without: set[str] = set()
"""The buckets of which this process knows that they have conditional writes, or that they have none."""


@dataclass(frozen=True)
class Seen:
    """A stored file as it was read: its content, and the tag of that version; None where there was no file.

    S3's tags are sums of the content: a file that was replaced by an equal one is not told from the first.
    """

    content: bytes | None = None
    tag: dict[str, str] | None = None


class UnconditionalError(Exception):
    """A failure in a bucket that has shown no conditional write yet: it may have none, or obstore not reach it.

    obstore finds fewer kinds of credentials and hosts than pyarrow. Where pyarrow can do the same, go on without.
    """


class Conditions:
    """Conditional reads and writes below a URL; `root` is the path of the URL in pyarrow's filesystem.

    Raises OSError where the store fails, and UnconditionalError.
    """

    def __init__(self, parts: SplitResult, filesystem: Any, root: str) -> None:
        self.place = f"{parts.scheme}://{parts.netloc}"
        self._key = f"{self.place}?{parts.query}"
        self._bucket, _, self._prefix = root.partition("/")
        self._parts = parts
        self._filesystem = filesystem
        self._opened: Any = None

    @property
    def there(self) -> bool:
        """True unless the store is known to have no conditional writes."""
        return self._parts.scheme in SCHEMES and self._key not in _without

    def read(self, name: str) -> Seen:
        """Return a file's content and tag of one and the same version."""
        import obstore

        try:
            found = obstore.get(self._store, self._path(name))
            tag = {key: value for key in ("e_tag", "version") if (value := found.meta[key]) is not None}  # type: ignore[literal-required]
            return Seen(bytes(found.bytes()), tag)
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise OSError(f"NO_SUCH_BUCKET: {error}") from error
            return Seen()
        except obstore.exceptions.BaseError as error:
            raise self._failed(error) from error

    def write(self, name: str, content: bytes, seen: Seen) -> bool:
        """Write a file if it is still what was seen. Return False if it is not, and not this content either."""
        if self._put(name, content, seen):
            return True
        return self.read(name).content == content  # it was written, and the answer lost

    def check_heeded(self, name: str, content: bytes, seen: Seen) -> None:
        """Raise UnconditionalError if a file that was just written over `seen` can be once more, or made anew."""
        if self._put(name, content, Seen()) or (seen.tag is not None and self._put(name, content, seen)):
            raise UnconditionalError("it does not heed If-None-Match and If-Match")

    def give_up(self, error: UnconditionalError) -> None:
        """Do without conditional writes to this bucket from now on."""
        if self._key not in _without:
            _without.add(self._key)
            log.warning(
                "%s has no conditional writes here: %s. Two looks stand in: where another process takes a run over, "
                "both may write for a moment; start and resume each run once, and stop it before it goes on elsewhere",
                self.place,
                error,
            )

    def _put(self, name: str, content: bytes, seen: Seen) -> bool:
        import obstore

        mode: Any = "create" if seen.tag is None else seen.tag
        try:
            obstore.put(self._store, self._path(name), content, mode=mode, use_multipart=False)
            written = True
        except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
            written = False
        except FileNotFoundError as error:
            raise OSError(f"NO_SUCH_BUCKET: {error}") from error
        except obstore.exceptions.BaseError as error:
            raise self._failed(error) from error
        _proven.add(self._key)
        return written

    def _failed(self, error: Exception) -> Exception:
        import obstore

        head = str(error).splitlines()[0][:300]
        if self._key not in _proven and (BUSY not in head or UNABLE in head):
            return UnconditionalError(head)
        denied = (obstore.exceptions.PermissionDeniedError, obstore.exceptions.UnauthenticatedError)
        return OSError(f"ACCESS_DENIED: {head}" if isinstance(error, denied) else head)

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    @property
    def _store(self) -> Any:
        import obstore

        if self._opened is None:
            try:
                self._opened = _opened(self._parts, self._bucket, self._filesystem)
            except (obstore.exceptions.BaseError, ValueError, TypeError) as error:
                raise UnconditionalError(str(error).splitlines()[0][:300]) from error
        return self._opened


def _opened(parts: SplitResult, bucket: str, filesystem: Any) -> Any:
    """Return obstore's store for a bucket, with the settings that pyarrow's filesystem has from the URL."""
    from obstore import store

    if parts.scheme in ("gs", "gcs", "abfs", "abfss"):
        if parts.query or (parts.scheme.startswith("abfs") and not AZURE.fullmatch(parts.netloc)):
            raise UnconditionalError("obstore does not know this form of URL")
        if parts.scheme.startswith("abfs"):
            return store.from_url(f"abfs://{parts.netloc}", client_options=CLIENT, retry_config=RETRY)
        anonymous: Any = {"skip_signature": True} if parts.username == "anonymous" else {}
        return store.GCSStore(bucket, config=anonymous, client_options=CLIENT, retry_config=RETRY)
    options = s3_options(parts)
    config: dict[str, Any] = {"region": filesystem.region, **_keys()}
    scheme = options.get("scheme", "https")
    virtual = options["force_virtual_addressing"] or ("endpoint_override" not in options and "." not in bucket)
    config["virtual_hosted_style_request"] = virtual
    if host := options.get("endpoint_override"):
        address = f"{scheme}://{bucket}.{host}" if virtual else f"{scheme}://{host}"
        config.update(endpoint=address, aws_endpoint_url_s3=address)  # the latter is read first, also from environment
    client: dict[str, Any] = {**CLIENT, "allow_http": scheme == "http"}
    if path := options.get("tls_ca_file_path"):
        client["root_certificate"] = Path(path).read_bytes()
    return store.S3Store(bucket, config=config, client_options=client, retry_config=RETRY)  # type: ignore[arg-type]


def _keys() -> dict[str, str]:
    """Return the keys of the AWS profile where the environment gives none, as obstore reads no profiles."""
    if any(os.environ.get(name) for name in GIVEN):
        return {}
    found = configparser.ConfigParser(interpolation=None)
    try:
        found.read(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or Path.home() / ".aws" / "credentials")
        held = dict(found[os.environ.get("AWS_PROFILE", "default")])
    except (configparser.Error, KeyError, ValueError):
        held = {}
    if "aws_access_key_id" in held:
        names = ("access_key_id", "secret_access_key", "session_token")
        return {name: held[f"aws_{name}"] for name in names if f"aws_{name}" in held}
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        raise UnconditionalError("obstore finds no credentials in the environment or the profile")
    return {}
