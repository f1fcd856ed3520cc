"""The reference of all keys of a config: a page, a JSON schema for editors, and what `pcpo-ray config` prints.

`python -m pcpo_ray.commands.reference` writes the page and the schema again.
"""
