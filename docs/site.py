"""A hook of mkdocs: the site has the repository's own pages at their own paths, so links work in both."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("*.md", "docs/**/*.md", "deploy/**/*.md", "configs/studies/**/*.md", "pcpo_ray/**/README.md")
LINK = re.compile(r"\]\(([^)#:\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the repository's pages, and the files that they link to, in place of those in docs/ alone."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    pages = {path for pattern in PAGES for path in ROOT.glob(pattern)}
    linked = {(page.parent / link).resolve() for page in pages for link in LINK.findall(page.read_text("utf-8"))}
    for path in sorted(pages | {path for path in linked if path.is_file()}):
        uri = path.relative_to(ROOT).as_posix()
        files.append(File(uri, str(ROOT), config.site_dir, config.use_directory_urls))
    return files
