"""Secrets, as far as they can be told: by a file's name, or by what a file or a command holds.

Anybody who can open a cluster's dashboard can read a job's package, its command and its log.
"""

import re
from pathlib import Path

from pathspec import PathSpec

NAMES = (
    # of programs, wherever their folder lies
    *(".ssh/", ".aws/", ".azure/", ".oci/", ".kube/", ".docker/", ".gnupg/", ".huggingface/", ".kaggle/", ".ray/"),
    *(".config/gcloud/", ".config/gh/", ".config/wandb/", ".config/rclone/", ".config/huggingface/", ".config/op/"),
    *(".cache/huggingface/token", ".cache/huggingface/stored_tokens", "wandb/settings", ".mlflow/credentials"),
    *(".password-store/", ".vault-token", ".secrets/", "secrets/", ".credentials/", ".dvc/config.local"),
    # of programs, a file each
    *(".env*", "*.env", ".netrc*", "_netrc*", ".pgpass*", ".my.cnf", ".s3cfg", ".boto", ".dockercfg", ".databrickscfg"),
    *(".npmrc", ".yarnrc*", ".pypirc*", "pip.conf", ".condarc", ".git-credentials*"),
    *(".dockerconfigjson", ".htpasswd", "rclone.conf", "clearml.conf"),
    *(".comet.config", ".modal.toml", "kaggle.json", "kubeconfig*", "*.kubeconfig", "*.tfstate*", "*.tfvars"),
    *(".bash_history", ".zsh_history", ".python_history"),
    # keys
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.pkcs12", "*.ppk", "*.jks", "*.keystore", "*.kdb", "*.kdbx", "*.gpg"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.ovpn"),
    # by what they are called
    *("credentials", "credentials.*", "credentials*.json", "*-credentials.*", "*_credentials.*", "*credentials.json"),
    *("service-account*.json", "service_account*.json", "client_secret*.json", "secrets.*", "secret.*", ".secrets*"),
    *("*api[_-]key", "*api[_-]key.*", "*api[_-]keys", "*api[_-]keys.*", "*apikey", "*apikey.*", "*accesskeys*.csv"),
    *("password", "password.*", "passwords", "passwords.*", "*password.txt", "auth.json", "token.json", "cookies.txt"),
    *("*[_-]key.txt", "*[_-]secret.txt"),
    *("*.token", ".token", "token", "token.txt", "*_token", "*_token.txt", ".hf_token*", "hf_token*"),
)
"""Patterns as in .gitignore, in small letters, at any depth, of where credentials are usually kept."""

_NAMES = PathSpec.from_lines("gitignore", [f"**/{pattern}" for pattern in NAMES])

KEY = rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:\\n|\r?\n)"
"""The first line of a private key, in a file of its own or in JSON, as service accounts have it."""

TOKENS = (
    rb"hf_[A-Za-z0-9]{30,}",  # Hugging Face
    rb"sk-(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{32,}",  # OpenAI, Anthropic, OpenRouter
    rb"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS
    rb"AIza[A-Za-z0-9_-]{35}",  # Google
    rb"gh[opusr]_[A-Za-z0-9]{36,}",  # GitHub
    rb"github_pat_[A-Za-z0-9_]{50,}",
    rb"glpat-[A-Za-z0-9_-]{20,}",  # GitLab
    rb"xox[abeoprs]-[A-Za-z0-9-]{20,}",  # Slack
    rb"https://hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/]{20,}",
    rb"wandb_v[0-9]+_[A-Za-z0-9_]{30,}",  # Weights & Biases
)
"""Tokens that say by their beginning whose they are."""

_HELD = re.compile(KEY + rb"|(?<![A-Za-z0-9_-])(?:" + rb"|".join(TOKENS) + rb")")

SEARCHED = 1 << 20
"""The bytes at a file's beginning that are searched: texts that people write are shorter, and models longer."""


def looks_secret(name: str) -> bool:
    """Return whether credentials are usually kept at a path, relative to the working folder."""
    return _NAMES.match_file(name.lower())


def holds_secret(path: Path) -> bool:
    """Return whether a private key or a token is in a file, whatever its name or form."""
    with path.open("rb") as file:
        return _HELD.search(file.read(SEARCHED)) is not None


def is_secret(text: str) -> bool:
    """Return whether a private key or a token is in a text."""
    return _HELD.search(text.encode(errors="surrogateescape")) is not None
