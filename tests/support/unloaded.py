"""A command in a process that ends when it comes to load torch, Ray or diffusers."""

PROGRAM = """
import sys
from pcpo_ray.commands import app
sys.argv = ["pcpo-ray", *{words!r}]
class Heavy:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "ray", "diffusers"):
            raise SystemExit("came to load " + name)
sys.meta_path.insert(0, Heavy())
app.main()
"""
