"""A hook of mkdocs that gives every page the path that it has in the repository."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
KINDS = (".md", ".svg", ".png", ".html", ".json", ".ipynb")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the repository's root and everything that docs/ shows."""
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*")]):
        if path.suffix in KINDS:
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files
