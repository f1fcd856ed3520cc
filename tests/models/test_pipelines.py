"""The README's lists of diffusers' text-to-image pipelines are those of the installed version."""

from pcpo_ray.config.model import BACKBONES
from tests.support import pipelines_table


def test_the_readme_lists_the_installed_pipelines():
    """Python -m tests.support.pipelines_table writes them."""
    text = pipelines_table.README.read_text(encoding="utf-8")
    assert text == pipelines_table.written(text)


def test_every_kind_is_one_of_the_installed_pipelines():
    first = pipelines_table.table().split("\n- not supported")[0]
    assert all(f"({kind})" in first for kind in BACKBONES)
