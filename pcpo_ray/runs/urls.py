"""URLs of object storage, and names of files below them.

A URL never carries credentials. Options stand in its query, as with pyarrow:
`?endpoint_override=HOST:PORT&scheme=http&region=...`.
"""

from urllib.parse import SplitResult, parse_qsl, quote, urlsplit

from pcpo_ray.errors import RunError

S3_OPTIONS = ("region", "scheme", "endpoint_override", "tls_ca_file_path", "force_virtual_addressing")


def is_url(text: str) -> bool:
    """Return whether a text is a URL rather than a path."""
    return "://" in text


def child(url: str, name: str) -> str:
    """Return the URL of a name below another URL, with the same options."""
    path, mark, query = url.partition("?")
    return f"{path.rstrip('/')}/{quote(name)}{mark}{query}"


def is_plain(name: str) -> bool:
    """Return whether a bucket's key is also a valid name of a file below a folder, on any machine."""
    return "\\" not in name and "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def shown(url: str) -> str:
    """Return a URL as messages name it: without its options."""
    return url.partition("?")[0]


def without_user(url: str) -> str:
    """Return a URL without its user and password: whoever sees a cluster can read a job's command."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else url


def checked(url: str) -> SplitResult:
    """Split a URL. Raises RunError if it is malformed, carries a secret, or has unknown options."""
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
