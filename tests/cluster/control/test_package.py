"""What goes along with a job is what the run needs: no more, and no less without an error."""

import json
import os
import zipfile
from pathlib import Path

import pytest

from pcpo_ray.cluster.control import package
from pcpo_ray.config import files
from pcpo_ray.errors import ConfigError
from tests.support import small

NEEDED = ["README.md", "my_rewards.py", "pkg/__init__.py", "pkg/checkpoints/model.bin", "prompts.txt", "small.yaml"]
USELESS = [
    ".git/HEAD",
    ".venv/bin/python",
    "pkg/__pycache__/x.pyc",
    "pkg/.mypy_cache/x",
    "runs/old/metrics.jsonl",
    "elsewhere/checkpoints/step-000010/state.json",
    "node_modules/x.js",
    ".DS_Store",
    "env310/pyvenv.cfg",
    "env310/bin/python",
    "tools/conda/conda-meta/history",
]


@pytest.fixture
def folder(tmp_path):
    """A working folder, with a config in it."""
    folder = tmp_path / "project"
    for name in (*NEEDED, *USELESS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "small.yaml").write_text(files.dump(small.run(Path("/models/small"))))
    return folder


def run(**changes):
    return small.run(Path("/models/small"), **changes)


def packed(folder, config, run, tmp_path):
    """The config's name in the package, and the package's files."""
    name = package.pack(folder, config, run, tmp_path / "package.zip").name
    with zipfile.ZipFile(tmp_path / "package.zip") as found:
        assert found.testzip() is None
        return name, {entry: found.read(entry) for entry in found.namelist()}


def test_the_working_folder_goes_along_without_what_no_run_needs(folder, tmp_path):
    name, found = packed(folder, folder / "small.yaml", run(), tmp_path)
    assert name == "small.yaml"
    assert sorted(found) == NEEDED
    assert found["my_rewards.py"] == b"my_rewards.py"


def test_ignore_files_are_kept_to_where_they_lie(folder, tmp_path):
    (folder / ".gitignore").write_text("/README.md\n*.txt\n")
    (folder / "pkg" / ".rayignore").write_text("checkpoints/\n# a comment\n")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "kept.bin").touch()
    (folder / "pkg" / "deep").mkdir()
    (folder / "pkg" / "deep" / "ignored.txt").touch()
    _, found = packed(folder, folder / "small.yaml", run(), tmp_path)
    assert sorted(found) == sorted(
        [".gitignore", "checkpoints/kept.bin", "my_rewards.py", "pkg/.rayignore", "pkg/__init__.py", "small.yaml"]
    )


def test_an_ignored_config_goes_along_all_the_same(folder, tmp_path):
    (folder / ".gitignore").write_text("*.yaml\n")
    name, found = packed(folder, folder / "small.yaml", run(), tmp_path)
    assert name in found


def test_a_config_from_elsewhere_lies_in_a_folder_of_its_own(folder, tmp_path):
    elsewhere = tmp_path / "small.yaml"
    elsewhere.write_text("name: another")
    name, found = packed(folder, elsewhere, run(), tmp_path)
    assert name == ".submitted/small.yaml"
    assert found[name] == b"name: another" and b"name: small" in found["small.yaml"]


def test_the_same_files_are_the_same_package_to_the_bit(folder, tmp_path):
    packages = []
    for _ in range(2):
        (folder / "prompts.txt").touch()
        package.pack(folder, folder / "small.yaml", run(), tmp_path / "package.zip")
        packages.append((tmp_path / "package.zip").read_bytes())
    assert packages[0] == packages[1]


def test_a_link_to_a_folder_is_not_followed(folder, tmp_path):
    (folder / "models").symlink_to(folder)
    assert "models/my_rewards.py" not in packed(folder, folder / "small.yaml", run(), tmp_path)[1]
    with pytest.raises(ConfigError, match=r"names 'models', which does not go along"):
        package.pack(folder, folder / "small.yaml", run(model__single_file="models"), tmp_path / "package.zip")


@pytest.mark.parametrize(
    ("ignored", "changes"),
    [
        ("prompts.txt", {"prompts": "{kind: file, path: prompts.txt}"}),
        ("my_rewards.py", {"rewards": "[{kind: 'my_rewards:Redness'}]"}),
        ("pkg", {"rewards": "[{kind: 'pkg:Redness'}]"}),
        ("", {"model__train": "{kind: lora, start: elsewhere/checkpoints/step-000010}"}),
    ],
)
def test_a_configured_file_left_out_is_an_error_before_anything_is_sent(folder, tmp_path, ignored, changes):
    if ignored:  # it goes along as long as nothing leaves it out
        package.pack(folder, folder / "small.yaml", run(**changes), tmp_path / "package.zip")
    (folder / ".gitignore").write_text(ignored + "\n")
    with pytest.raises(ConfigError, match="does not go along with the job"):
        package.pack(folder, folder / "small.yaml", run(**changes), tmp_path / "package.zip")


def test_words_that_are_no_paths_may_be_names_of_folders_left_out(folder, tmp_path):
    (folder / ".gitignore").write_text("lora/\nsmall/\nshapes/\n")
    for name in ("lora", "small", "shapes"):
        (folder / name).mkdir()
        (folder / name / "left_out.bin").touch()
    _, found = packed(folder, folder / "small.yaml", run(), tmp_path)
    assert sorted(found) == sorted([*NEEDED, ".gitignore"])


def test_a_folder_too_large_is_an_error_that_names_the_largest_files(folder, tmp_path):
    with (folder / "pkg" / "images.bin").open("wb") as file:
        file.truncate(101 * 2**20)
    with pytest.raises(ConfigError, match=r"too large.*101 MiB.*takes 100; largest are pkg/images.bin \(101.0 MiB"):
        package.pack(folder, folder / "small.yaml", run(), tmp_path / "package.zip")
    assert not (tmp_path / "package.zip").exists()


SECRETS = (
    *(
        ".env",
        ".env.local",
        "prod.env",
        ".netrc",
        "sub/.netrc",
        "key.pem",
        "deep/er/server.key",
        "id_rsa",
        "ID_RSA.old",
    ),
    *(".ssh/id_ed25519", ".ssh/config", ".aws/credentials", "home/.aws/config", ".kube/config", ".docker/config.json"),
    *(".huggingface/token", ".cache/huggingface/token", ".npmrc", ".pypirc", ".git-credentials", "credentials.json"),
    *("credentials-prod.json", "service-account-1.json", "cert.p12", "a.pfx", "vault.kdbx", ".config/gcloud/x.db"),
    *(".azure/accessTokens.json", "wandb/settings", ".config/wandb/settings", "hf_token.txt", "secrets.yaml"),
    *(".netrc.bak", ".pypirc~", "api_key.txt", "wandb_api_key", "auth.json", "passwords.csv", "ci_accessKeys.csv"),
    *("openai_key.txt", "client-secret.txt", "clearml.conf", ".dvc/config.local"),
    *("my-credentials.json", ".ray/auth_token", "terraform.tfstate", "sub/secrets/plain.txt", "kubeconfig"),
)
HARMLESS = ("tokenizer.json", "models/tokenizer/special_tokens_map.json", "keys.py", "environment.yaml", "pkg/token.py")


@pytest.mark.parametrize("name", SECRETS)
def test_what_looks_like_a_secret_stays_wherever_it_lies(folder, tmp_path, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("hidden")
    content = package.pack(folder, folder / "small.yaml", run(), tmp_path / "package.zip")
    assert sorted(content.sizes) == NEEDED and list(content.selected.secrets) == [name]
    assert f"stays, as it looks like a secret: {name};" in content.lines()[1]
    content = package.pack(folder, folder / "small.yaml", run(), tmp_path / "package.zip", include=[f"./{name}"])
    assert name in content.sizes and len(content.lines()) == 1


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_sounds_like_one_goes_along(folder, tmp_path, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("-----BEGIN is how a PRIVATE KEY----- begins")
    assert name in packed(folder, folder / "small.yaml", run(), tmp_path)[1]


def test_files_that_cannot_go_along_are_named(folder, tmp_path, monkeypatch):
    (folder / ".gitignore").write_bytes(b"caf\xe9/\n")
    strange = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))
    strange.mkdir()
    (strange / "in.txt").touch()
    assert sorted(packed(folder, folder / "small.yaml", run(), tmp_path)[1]) == [".gitignore", *NEEDED]
    (folder / ".gitignore").unlink()
    with pytest.raises(ConfigError, match=r"no UTF-8.*caf\\udce9/in.txt"):
        package.pack(folder, folder / "small.yaml", run(), tmp_path / "package.zip")
    (strange / "in.txt").unlink()

    def refusing(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(package, "holds_secret", refusing)
    with pytest.raises(ConfigError, match=r"project/.* cannot be packed.*Permission denied.*\.rayignore"):
        package.pack(folder, folder / "small.yaml", run(), tmp_path / "package.zip")


HELD = [
    "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n",
    "-----BEGIN PRIVATE KEY-----\r\nAAAA\r\n",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nAAAA\n",
    "Bag Attributes\n    friendlyName: mine\n-----BEGIN RSA PRIVATE KEY-----\nAAAA\n",
    json.dumps({"type": "service_account", "private_key": "-----BEGIN PRIVATE KEY-----\nAAAA\n"}),
    f"judge:\n  key: sk-proj-{'a1B_' * 12}\n",
    f"export HF_TOKEN=hf_{'a1B' * 12}\n",
    f"import os\n{'# ' * 9000}\nos.environ['AWS_ACCESS_KEY_ID'] = 'AKIA{'A1' * 8}'\n",
    f"url: https://me:ghp_{'a1B' * 12}@github.com/me/models\n",
    f"notify: https://hooks.slack.com/services/{'T1/B2/c3' * 4}\n",
]


@pytest.mark.parametrize("text", HELD)
def test_a_file_that_holds_a_key_stays_whatever_it_is_called(folder, tmp_path, text):
    (folder / "notes.txt").write_text(text)
    content = package.pack(folder, folder / "small.yaml", run(), tmp_path / "package.zip")
    assert "notes.txt" not in content.sizes
    assert "stays, as it looks like a secret: notes.txt (holds a key or a token); " in content.lines()[1]


@pytest.mark.parametrize(
    "text", ["risk-" + "a1" * 20, "sk-" + "a-word-" * 8, "path/to/hf_models", "AKIA1234", "gh" + "p_short", "xox-b"]
)
def test_words_that_only_begin_like_a_token_go_along(folder, tmp_path, text):
    (folder / "notes.txt").write_text(f"see {text} for this")
    assert "notes.txt" in packed(folder, folder / "small.yaml", run(), tmp_path)[1]


def test_a_config_that_holds_a_key_goes_along_only_if_asked_for(folder, tmp_path):
    with (folder / "small.yaml").open("a") as file:
        file.write(f"# the judge's key: sk-{'a1' * 20}\n")
    elsewhere = tmp_path / "small.yaml"
    elsewhere.write_bytes((folder / "small.yaml").read_bytes())
    for path, include in ((folder / "small.yaml", "small.yaml"), (elsewhere, "../small.yaml")):
        with pytest.raises(ConfigError, match=r"small\.yaml holds what looks like a key or a token.*--include-secret"):
            package.pack(folder, path, run(), tmp_path / "package.zip")
        content = package.pack(folder, path, run(), tmp_path / "package.zip", include=[include])
        assert content.name in content.sizes and content.name not in content.selected.secrets


def test_links_that_lead_out_or_to_a_secret_stay_and_are_named(folder, tmp_path):
    (tmp_path / "passwords").write_text("hidden")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("hidden")
    (folder / ".env").write_text("hidden")
    for name, target in {
        "leak": tmp_path / "passwords", "pkg/up": "../../passwords", "folder": tmp_path / "outside",
        "innocent": ".env", "readme": "README.md", "dangling": "nowhere",
    }.items():  # fmt: skip
        (folder / name).symlink_to(target)
    content = package.pack(folder, folder / "small.yaml", run(), tmp_path / "package.zip")
    assert sorted(content.sizes) == sorted([*NEEDED, "readme"])
    assert list(content.selected.secrets) == [".env", "innocent"]
    assert content.selected.links == {
        "folder": str(tmp_path / "outside"), "leak": str(tmp_path / "passwords"), "pkg/up": "../../passwords"
    }  # fmt: skip
    assert "pkg/up -> ../../passwords" in content.lines()[2]
    with pytest.raises(ConfigError, match="names 'leak', which does not go along"):
        package.pack(folder, folder / "small.yaml", run(model__single_file="leak"), tmp_path / "package.zip")
    with pytest.raises(ConfigError, match=r"--include-secret names \['\.\./passwords', 'absent', 'leak'\]"):
        package.find(folder, ["leak", "absent", "../passwords"])


def test_a_secret_that_the_config_names_is_an_error_before_sending(folder, tmp_path):
    (folder / "judge").mkdir()
    (folder / "judge" / "service-account.json").write_text("hidden")
    for named in ("judge/service-account.json", "judge"):
        own = run(rewards=f"[{{kind: 'my_rewards:Redness', options: {{login: {named}}}}}]")
        with pytest.raises(ConfigError, match=r"looks like a secret, which stays; say --include-secret judge/service"):
            package.pack(folder, folder / "small.yaml", own, tmp_path / "package.zip")
        package.pack(
            folder, folder / "small.yaml", own, tmp_path / "package.zip", include=["judge/service-account.json"]
        )


def test_it_says_what_goes_along(folder, tmp_path):
    content = package.pack(folder, folder / "small.yaml", run(), tmp_path / "package.zip")
    (line,) = content.lines()
    assert line.startswith("goes along: 6 files, 0.0 MiB; largest are small.yaml (0.0 MiB), ")


def test_an_override_that_holds_a_key_is_refused_without_showing_it():
    key = "sk-" + "a1" * 20
    with pytest.raises(ConfigError, match=r"rewards\.0\.options\.key is given what looks like a key") as refused:
        package.check_words(["steps=3", f"rewards.0.options.key={key}"])
    assert key not in str(refused.value)
    package.check_words(["steps=3", "rewards.0.options.key=JUDGE_KEY"])
