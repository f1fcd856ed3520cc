"""The build of a wheel: configs/ travels in it as pcpo_ray/recipes, without the results of studies."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = ("*.yaml", "studies/*.yaml", "prompts/*.txt", "prompts/*.md")


class CustomBuildHook(BuildHookInterface):
    """Adds the recipes; an editable installation finds them in configs/ itself."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name every file to be added. Raises FileNotFoundError where there are none."""
        if version == "editable":
            return
        configs = Path(self.root) / "configs"
        found = {
            str(path): f"pcpo_ray/recipes/{path.relative_to(configs).as_posix()}"
            for pattern in SHIPPED
            for path in configs.glob(pattern)
        }
        if not found:
            raise FileNotFoundError(f"{configs} has no recipes, which belong into the wheel")
        build_data["force_include"].update(found)
