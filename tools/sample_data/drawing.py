"""How the pictures of `sample_data` are drawn: classes for classifiers, shapes for detectors."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageDraw

# Ids with gaps, as COCO's own.
COCO_CATEGORIES = ((1, "circle"), (3, "square"), (7, "triangle"))


def small_pictures(
    rng: np.random.Generator, classes: int, per_class: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(N, size, size, 3) uint8 pictures and (N,) int64 labels, in random order."""
    labels = rng.permutation(np.repeat(np.arange(classes), per_class))
    return np.stack([_picture(rng, label, classes, size, size) for label in labels]), labels


def varied_picture(rng: np.random.Generator, label: int, classes: int, size: int) -> Image.Image:
    """A picture of a class, (H, W, 3), its sides 0.85 to 1.3 times ``size`` pixels."""
    height, width = (round(size * side) for side in rng.uniform(0.85, 1.3, size=2))
    return Image.fromarray(_picture(rng, label, classes, height, width))


def _picture(
    rng: np.random.Generator, label: int, classes: int, height: int, width: int
) -> np.ndarray:
    """A (height, width, 3) uint8 picture of class ``label``.

    Neither a mirror image nor a change of scale turns one class into another, so the usual
    augmentations leave the labels true.
    """
    side = min(height, width)
    # A column and a row of places, in units of the shorter side, from the silhouette's centre.
    y = np.arange(height, dtype=np.float32)[:, None] / side - height / side * rng.uniform(
        0.35, 0.65
    )
    x = np.arange(width, dtype=np.float32)[None] / side - width / side * rng.uniform(0.35, 0.65)
    away = np.hypot(x, y)
    wave = 2 * np.pi * rng.uniform(3.0, 5.0)
    phase_y, phase_x = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
    vertical, horizontal = np.sin(wave * y + phase_y), np.sin(wave * x + phase_x)
    pattern = (
        lambda: np.broadcast_to(vertical, away.shape),
        lambda: np.broadcast_to(horizontal, away.shape),
        lambda: np.sign(vertical * horizontal),
        lambda: np.sin(1.5 * wave * away + phase_x),
        lambda: np.where(vertical + horizontal > 1.0, np.float32(1.0), np.float32(-0.6)),
    )[label % 5]()
    radius = rng.uniform(0.30, 0.45)
    distance = (
        lambda: away,
        lambda: np.maximum(abs(x), abs(y)) * 1.1,
        lambda: (abs(x) + abs(y)) * 0.8,
        lambda: abs(away - 0.25) * 3,
    )[label // 5 % 4]()
    inside = np.clip((radius - distance) * (side / 2), 0, 1)[..., None]

    def colour(hue: float, saturation: tuple[float, float]) -> np.ndarray:
        parts = (hue % 1.0, rng.uniform(*saturation), rng.uniform(0.5, 1.0))
        return np.array(colorsys.hsv_to_rgb(*parts), np.float32)  # (3,), 0..1

    hue = label / classes + rng.normal(0, 0.08)
    # Faint patterns and hues that overlap their neighbours' keep some pictures hard.
    contrast = rng.uniform(0.15, 0.35)
    front = colour(hue, (0.2, 0.65)) * (1 - contrast + contrast * pattern[..., None])
    back = colour(rng.uniform(), (0.0, 0.5)) * rng.uniform(0.3, 1.0)
    back = back * (1 + 0.4 * np.sin(4 * x + 3 * y + phase_y)[..., None])
    strength = np.float32(rng.uniform(0.05, 0.16))
    noise = strength * rng.standard_normal((height, width, 3), np.float32)
    values = inside * front + (1 - inside) * back + noise
    return (255 * np.clip(values, 0, 1)).astype(np.uint8)


def picture_of_shapes(
    rng: np.random.Generator, size: int, empty: bool
) -> tuple[Image.Image, list[dict]]:
    """A noisy picture and its shapes: category_id, bbox, area, segmentation."""
    width, height = size, round(size * rng.uniform(0.9, 1.1))
    ground = rng.uniform(60, 190, size=3)
    coarse = rng.normal(0, 22, size=(6, 6, 3)) + ground
    smooth = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    picture = smooth.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    shapes: list[dict] = []
    boxes: list[tuple[float, float, float]] = []
    if not empty and size >= 112 and rng.uniform() < 0.15:
        # A large shape stands alone. Only circles and squares reach the area; a triangle has half.
        side = min(width, height) - 4.0
        x, y = rng.uniform(1, width - side - 1), rng.uniform(1, height - side - 1)
        shapes.append(_draw_shape(rng, draw, ground, int(rng.integers(2)), x, y, side))
    elif not empty:
        for _ in range(int(rng.integers(1, 4))):
            side = rng.uniform(18, 30) if rng.uniform() < 0.4 else rng.uniform(0.3, 0.55) * size
            for _ in range(20):
                x, y = rng.uniform(1, width - side - 1), rng.uniform(1, height - side - 1)
                if all(
                    x + side < left or left + other < x or y + side < top or top + other < y
                    for left, top, other in boxes
                ):
                    boxes.append((x, y, side))
                    kind = int(rng.integers(len(COCO_CATEGORIES)))
                    shapes.append(_draw_shape(rng, draw, ground, kind, x, y, side))
                    break
    noise = 10 * rng.standard_normal((height, width, 3), np.float32)
    pixels = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels), shapes


def _draw_shape(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    ground: np.ndarray,
    kind: int,
    x: float,
    y: float,
    side: float,
) -> dict:
    """Draw shape ``kind`` into the square at (x, y) and return its annotation."""
    if kind == 0:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 0.5 + 0.5
    elif kind == 1:
        points = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)
    else:
        points = np.array([(0.5, 0), (1, 1), (0, 1)], float)
    points = np.round(points * side + (x, y), 2)
    away = np.where(ground > 125, -1, 1) * rng.uniform(25, 110, size=3)
    draw.polygon([tuple(point) for point in points], fill=tuple(int(c) for c in ground + away))
    low, high = points.min(axis=0), points.max(axis=0)
    following = np.roll(points, -1, axis=0)
    cross = points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]
    return {
        "category_id": COCO_CATEGORIES[kind][0],
        "bbox": [round(float(value), 2) for value in (*low, *(high - low))],
        "area": round(abs(float(cross.sum())) / 2, 2),
        "segmentation": [[float(value) for value in points.ravel()]],
    }
