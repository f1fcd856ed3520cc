"""The JSON schema of a run's config, for editors: pydantic's, with each key's documentation."""

import dataclasses
import json
from typing import Any

from pydantic import TypeAdapter

from pcpo_ray import config
from pcpo_ray.config.keys import documented

LINE = "# yaml-language-server: $schema="
"""The beginning of the line by which editors find a YAML file's schema."""


def schema() -> dict[str, Any]:
    """Make the schema of a run's config."""
    found: dict[str, Any] = TypeAdapter(config.Run).json_schema()
    every = (one for one in vars(config).values() if isinstance(one, type))
    classes = {cls.__name__: cls for cls in every if dataclasses.is_dataclass(cls)}
    for name, described in ((config.Run.__name__, found), *found["$defs"].items()):
        texts = documented(classes[name])
        for key, about in described["properties"].items():
            about.pop("title", None)
            if key in texts:
                about["description"] = texts[key]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def text() -> str:
    """Write the schema as a file has it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
