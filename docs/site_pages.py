"""MkDocs hook: pages from files outside docs/, and links that work on the site and in the repository alike.

A page is written once, where a reader of the repository looks for it; its links are relative to that place.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "bridge/comfyui/README.md": "comfyui.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/models/README.md": "models.md",
    "notebooks/diffusers.ipynb": "notebooks/diffusers.md",
    "notebooks/paper.ipynb": "notebooks/paper.md",
}
"""Where a page stands in the repository -> where on the site."""

_SOURCES = {page: source for source, page in OUTSIDE.items()}
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of `OUTSIDE`."""
    for source, page in OUTSIDE.items():
        text = (_root(config) / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=from_notebook(text) if source.endswith(".ipynb") else text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point each link at the page that its file has on the site, by the page's title where the text is its name.

    A file that has none is named instead of linked; a link to no file stays as it is, which MkDocs warns of.
    """
    here = page.file.src_uri
    source = _SOURCES.get(here, f"docs/{here}")

    def moved(link: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), link["target"]))
        target = OUTSIDE.get(file, file.removeprefix("docs/") if file.startswith("docs/") else None)
        if not (_root(config) / file).exists():
            return link[0]
        text = link["text"]
        if target is None:
            return text if text == file else f"{text} (`{file}`)"
        if text == posixpath.basename(file):
            text = title(_root(config) / file)
        relative = posixpath.relpath(target, posixpath.dirname(here) or ".")
        return f"{link['image']}[{text}]({relative}{link['anchor'] or ''})"

    return _LINK.sub(moved, markdown)


def from_notebook(text: str) -> str:
    """A notebook as Markdown: its texts, its code, and below each cell what it printed and drew."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            else:
                parts.append(
                    f'<img alt="what the cell draws" src="data:image/png;base64,{output["data"]["image/png"]}">'
                )
    return "\n\n".join(parts)


def title(file: Path) -> str:
    """The first heading of a page, or the file's name."""
    text = file.read_text(encoding="utf-8") if file.suffix == ".md" else ""
    heading = re.search(r"^# (.+)$", text, re.M)
    return heading[1] if heading else file.name


def _root(config: Any) -> Path:
    return Path(config.config_file_path).parent
