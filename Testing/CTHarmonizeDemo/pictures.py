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
_WIDEST = 1080
_COLOURS = 96


def main(source: Path, target: Path) -> None:
    """Copy each picture, no wider than a page shows it and with few colours, so that it stays small."""
    from PIL import Image

    target.mkdir(parents=True, exist_ok=True)
    for name, short in PICTURES.items():
        image = Image.open(source / name).convert("RGB")
        if image.width > _WIDEST:
            image = image.resize((_WIDEST, round(image.height * _WIDEST / image.width)), Image.Resampling.LANCZOS)
        image.quantize(_COLOURS, dither=Image.Dither.NONE).save(target / short, optimize=True)
        print(f"{target / short}: {(target / short).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
