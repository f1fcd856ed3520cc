"""pyarrow's filesystem for a URL, with time limits that end within seconds where nothing answers."""

import os
from datetime import timedelta
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote

CONNECT, SILENCE, ATTEMPTS = 5.0, 6.0, 3
"""S3: seconds to connect, seconds without a byte before a request is given up, and attempts per request."""

RETRY = timedelta(seconds=10)
"""Google Cloud Storage: time for which its client retries."""


def opened(url: str, parts: SplitResult) -> tuple[Any, str]:
    """Return pyarrow's filesystem for a URL and the path of the URL in it. Raises OSError."""
    from pyarrow import fs

    if parts.scheme == "s3":
        return _s3(parts)
    if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in url:
        url += f"{'&' if parts.query else '?'}retry_limit_seconds={RETRY.seconds}"
    filesystem, root = fs.FileSystem.from_uri(url)
    return filesystem, root.rstrip("/")


def s3_options(parts: SplitResult) -> dict[str, Any]:
    """Return the options of an S3 URL, with the endpoint of the environment where it names none."""
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if address and "endpoint_override" not in options:
        options["scheme"], _, options["endpoint_override"] = address.rstrip("/").partition("://")
    options["force_virtual_addressing"] = options.get("force_virtual_addressing", "false").lower() == "true"
    return options


def _s3(parts: SplitResult) -> tuple[Any, str]:
    """Open S3 as pyarrow's `from_uri` does, with time limits, of which `from_uri` has none below minutes."""
    from pyarrow import fs

    options = s3_options(parts)
    bounded = {
        "connect_timeout": CONNECT,
        "request_timeout": SILENCE,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        **options,
    }
    bucket = parts.netloc
    if "region" not in options:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if region is None and "endpoint_override" not in options:
            region = _region(bucket, fs.S3FileSystem(region="us-east-1", **bounded))
        bounded["region"] = region or "us-east-1"
    return fs.S3FileSystem(**bounded), f"{bucket}{unquote(parts.path)}".rstrip("/")


def _region(bucket: str, filesystem: Any) -> str:
    """Return a bucket's region. Raises OSError, within seconds, where S3 cannot be reached."""
    from pyarrow import fs

    try:
        filesystem.get_file_info(bucket)
    except OSError as error:
        if "NETWORK_CONNECTION" in str(error):
            raise
    region: str = fs.resolve_s3_region(bucket)  # tries for minutes where nothing answers
    return region
