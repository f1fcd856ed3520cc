"""What Lumina-Image 2.0's pipeline takes for granted of its folder is checked, and refused by name."""

import pytest

from pcpo_ray.commands import session
from pcpo_ray.errors import ModelError
from tests.support import small


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("vae/config.json", {"block_out_channels": [8, 8]}, "latents of 2 pixels and tokens of 2 latents"),
        ("transformer/config.json", {"patch_size": 4}, "latents of 8 pixels and tokens of 4 latents"),
    ],
)
def test_sizes_with_which_the_pipeline_does_not_reckon_are_refused(model, tmp_path, file, changes, words):
    folder = small.rewritten(model("lumina2"), tmp_path, file, **changes)
    with pytest.raises(ModelError, match=rf"{words} a side; expected 8 and 2"):
        session.check_steps(small.run(folder))
