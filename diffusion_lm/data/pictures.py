"""Pictures of images that are made of tokens."""

import math

import numpy as np


def save_grid(path: str, tokens: np.ndarray, shape: tuple[int, int, int], vocab_size: int) -> None:
    """Writes images, tokens [N, L], side by side into a new PNG file.

    Small images are enlarged to about 64 pixels.  A masked pixel (id V) is slate blue; where only
    some of its channels are masked, these are mid-grey.  FileExistsError if there is such a file.
    """
    height, width, channels = shape
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] != math.prod(shape):
        raise ValueError(f"tokens of shape {tokens.shape} are no images of shape {shape}")
    if tokens.min() < 0 or tokens.max() > vocab_size:
        raise ValueError(f"tokens in {tokens.min()}..{tokens.max()}, wanted 0..{vocab_size}")
    from PIL import Image

    images = tokens.reshape(-1, *shape)
    hidden = images == vocab_size
    levels = np.where(hidden, 128, np.rint(images * (255 / (vocab_size - 1))))
    levels = np.broadcast_to(levels, (*images.shape[:3], 3)) if channels == 1 else levels
    levels = np.where(hidden.all(-1, keepdims=True), (70, 90, 150), levels).astype(np.uint8)
    scale = max(1, round(64 / max(height, width)))
    levels = levels.repeat(scale, 1).repeat(scale, 2)
    across = math.ceil(math.sqrt(len(images)))
    down, gap = -(-len(images) // across), 2
    step_y, step_x = height * scale + gap, width * scale + gap
    sheet = np.full((down * step_y + gap, across * step_x + gap, 3), 32, np.uint8)
    for i, image in enumerate(levels):
        y, x = gap + i // across * step_y, gap + i % across * step_x
        sheet[y : y + height * scale, x : x + width * scale] = image
    try:
        with open(path, "xb") as file:
            Image.fromarray(sheet).save(file, format="PNG")
    except FileExistsError:
        raise FileExistsError(f"{path} exists already, it is not overwritten") from None
