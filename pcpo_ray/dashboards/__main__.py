"""python -m pcpo_ray.dashboards: write deploy/'s dashboards, rules and metrics page anew, here."""

from pathlib import Path

from pcpo_ray.dashboards import files

for name, text in files().items():
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(path)
