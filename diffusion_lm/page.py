"""One HTML file that plays how samples came about, step by step; it needs nothing but itself."""

import importlib.resources
import json
import math
import os

import numpy as np

from diffusion_lm.types import Data


def check(path: str) -> None:
    """Raises OSError where `write` could not make its file."""
    if not path:
        raise FileNotFoundError("--html= wants the name of a new file")
    if os.path.lexists(path):
        raise FileExistsError(f"--html={path} exists already, it is not overwritten")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"--html={path}: there is no folder {folder!r}")


def write(path: str, data: Data, drawn: list[dict], facts: dict[str, str]) -> None:
    """Writes what `sample.samples` made, with its steps, into a new file; `facts` stand above."""
    with open(path, "x", encoding="utf-8") as file:
        file.write(render(data, drawn, facts))


def render(data: Data, drawn: list[dict], facts: dict[str, str]) -> str:
    """The page: page.html around one block of JSON, in which no "<" can end it."""
    mask, samples, used = data.vocab_size, [], set()
    for made in drawn:
        used.update(made["prompt"].tokens, *(step.tokens for step in made["steps"]))
        samples.append(
            {
                "index": made["index"],
                "calls": int(made["calls"]),
                "start": _ids(made["prompt"].tokens, mask),
                "free": made["prompt"].free.astype(int).tolist(),
                "steps": [
                    {
                        "at": step.places.tolist(),
                        "id": _ids(step.tokens, mask),
                        "p": [_short(p) for p in step.prob],
                        "effective": _short(step.effective),
                    }
                    for step in made["steps"]
                ],
            }
        )
    content = {
        "facts": facts,
        "shape": data.shape or None,
        "levels": data.vocab_size,
        "pieces": {int(i): _piece(data.tokenizer.pieces[i]) for i in sorted(used - {mask})}
        if not data.shape
        else {},
        "samples": samples,
    }
    template = importlib.resources.files("diffusion_lm").joinpath("page.html")
    text = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    return template.read_text(encoding="utf-8").replace("{{data}}", text)


def _ids(tokens: np.ndarray, mask: int) -> list[int]:
    """Token ids; -1 for the mask."""
    return np.where(tokens == mask, -1, tokens).tolist()


def _piece(piece: bytes) -> str | list[int]:
    """The text of a token, or its bytes if they are no text by themselves."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def _short(value: float) -> float | None:
    """Three digits; None for NaN."""
    return None if math.isnan(value) else float(f"{value:.3g}")
