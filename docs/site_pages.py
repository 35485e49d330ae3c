"""MkDocs hook: pages from Markdown outside docs/, and links that work on the site and in the repository alike.

A page is written once, where a reader of the repository looks for it; its links are relative to that place.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "bridge/comfyui/README.md": "comfyui.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/models/README.md": "models.md",
}
"""Where a page stands in the repository -> where on the site."""

_SOURCES = {page: source for source, page in OUTSIDE.items()}
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of `OUTSIDE`."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(_root(config) / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point each link at the page that its file has on the site.

    A file that has none is named instead of linked; a link to no file stays as it is, which MkDocs warns of.
    """
    here = page.file.src_uri
    source = _SOURCES.get(here, f"docs/{here}")

    def moved(link: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["target"]))
        target = OUTSIDE.get(file, file.removeprefix("docs/") if file.startswith("docs/") else None)
        if not (_root(config) / file).exists():
            return link[0]
        if target is None:
            return link["text"] if link["text"] == file else f"{link['text']} (`{file}`)"
        relative = posixpath.relpath(target, posixpath.dirname(here) or ".")
        return f"{link['image']}[{link['text']}]({relative}{link['anchor'] or ''})"

    return _LINK.sub(moved, markdown)


def _root(config: Any) -> Path:
    return Path(config.config_file_path).parent
