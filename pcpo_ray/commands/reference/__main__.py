"""Write docs/config.md and docs/config.schema.json into the repository that this package is in."""

from pathlib import Path

import pcpo_ray
from pcpo_ray.commands.reference.page import files

if __name__ == "__main__":
    for name, text in files().items():
        (Path(pcpo_ray.__file__).parents[1] / name).write_text(text, encoding="utf-8")
        print(name)
