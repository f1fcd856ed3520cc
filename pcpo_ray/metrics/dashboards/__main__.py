"""python -m pcpo_ray.metrics.dashboards: write what `files` makes, from the root of the repository."""

from pathlib import Path

from pcpo_ray.metrics.dashboards import files

if __name__ == "__main__":
    for name, text in files().items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
