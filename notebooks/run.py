"""Execute the notebooks beside this file from top to bottom, and keep in them what they print and draw.

    python notebooks/run.py              both
    python notebooks/run.py paper.ipynb  one

Jupyter does the same; this needs no package and gives the same file on every run.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from PIL import Image

HERE = Path(__file__).parent
DPI = 80


def execute(notebook: dict[str, Any]) -> None:
    """Run the code cells in one namespace, as a kernel does, and replace their outputs."""
    matplotlib.use("agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        source = "".join(cell["source"])
        tree = ast.parse(source)
        silent = source.endswith(";") or not isinstance(tree.body[-1], ast.Expr)
        last = None if silent else tree.body.pop()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            exec(compile(tree, f"cell {number}", "exec"), names)
            shown = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names) if last else None
        pictures = [_drawn(plt.figure(n)) for n in plt.get_fignums()]
        plt.close("all")
        if isinstance(shown, Image.Image):
            pictures.append(_png(shown))
        elif shown is not None:
            print(shown, file=printed)
        text = printed.getvalue().splitlines(keepends=True)
        cell["execution_count"] = number
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": text}] if text else []
        cell["outputs"] += [{"data": {"image/png": x}, "metadata": {}, "output_type": "display_data"} for x in pictures]


def _drawn(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    with Image.open(buffer) as image:
        return _png(image)


def _png(image: Image.Image) -> str:
    """As base64, in 256 colours: notebooks are committed."""
    buffer = io.BytesIO()
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main(names: list[str]) -> None:
    """Execute and write each."""
    warnings.simplefilter("ignore")
    os.chdir(HERE)
    for file in [HERE / name for name in names] or sorted(HERE.glob("*.ipynb")):
        notebook = json.loads(file.read_text(encoding="utf-8"))
        execute(notebook)
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
