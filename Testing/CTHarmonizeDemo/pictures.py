"""Makes the pictures of README and docs from what ``make demo`` left: ``make pictures``."""

from __future__ import annotations

import sys
from pathlib import Path

PICTURES = {
    "chest/figure.png": "chest.png",
    "head/figure.png": "head.png",
    "panel.png": "panel.png",
    "panel-ready.png": "panel-ready.png",
}
"""Picture of the demo, and its name in docs/images."""

_WIDEST = 1080
_SHADES = 64  # of grey, and as many of the deviation's colour map


def main(source: Path, target: Path) -> None:
    """Copy each picture, no wider than a page shows it and with few colours, so that it stays small."""
    from matplotlib import colormaps
    from PIL import Image

    target.mkdir(parents=True, exist_ok=True)
    colours = [
        tuple(round(255 * x) for x in colormaps[name](i / (_SHADES - 1))[:3])
        for name in ("gray", "inferno")
        for i in range(_SHADES)
    ]
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour in colours for value in colour])
    for name, short in PICTURES.items():
        image = Image.open(source / name).convert("RGB")
        if not name.endswith("figure.png"):
            image.save(target / short, optimize=True)
            continue
        if image.width > _WIDEST:
            image = image.resize(
                (_WIDEST, round(image.height * _WIDEST / image.width)), Image.Resampling.LANCZOS
            )
        image.quantize(palette=palette, dither=Image.Dither.NONE).save(target / short, optimize=True)
        print(f"{target / short}: {(target / short).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
