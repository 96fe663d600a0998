"""A tiny set of images with boxes, in Pascal VOC's layout: discs and squares on noise."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ["disc", "square"]
_OBJECT = (
    "<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)
_ANNOTATION = (
    "<annotation><filename>{0}.png</filename><size><width>{1}</width><height>{1}</height><depth>3</depth></size>{2}"
    "</annotation>"
)


def write_shapes(root: Path, counts: dict[str, int], size: int = 32, seed: int = 0) -> None:
    """Writes `counts` images of `size` pixels a side into each split of the folder `root`, seeded."""
    generator, number = np.random.default_rng(seed), 0
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, count in counts.items():
        names = [f"{number + at:03d}" for at in range(count)]
        number += count
        for name in names:
            image, objects = _draw(generator, size)
            image.save(root / "JPEGImages" / f"{name}.png")
            (root / "Annotations" / f"{name}.xml").write_text(_ANNOTATION.format(name, size, "".join(objects)))
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names))


def _draw(generator: np.random.Generator, size: int) -> tuple[Image.Image, list[str]]:
    image = Image.fromarray(generator.integers(90, 160, (size, size, 3), dtype=np.uint8))
    draw, objects = ImageDraw.Draw(image), []
    for half in range(int(generator.integers(1, 3))):  # one in each half, so that none hides another
        side = int(generator.integers(size // 4, size // 2 - 1))
        left = int(generator.integers(0, size // 2 - side)) + half * size // 2
        top = int(generator.integers(0, size - side))
        box = (left, top, left + side, top + side)
        label = CLASSES[int(generator.integers(0, 2))]
        if label == "disc":
            draw.ellipse(box, fill=(220, 40, 40))
        else:
            draw.rectangle(box, fill=(40, 60, 220))
        objects.append(_OBJECT.format(label, *box))
    return image, objects
