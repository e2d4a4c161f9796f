"""Scenes: a few coloured shapes on a 3x3 grid, sampled by seed and drawn with Pillow.

Owns what a scene is, which split it belongs to, and how it looks. A scene's split is a hash of its
objects, so train, validation and test never share a scene, whatever their seeds.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLORS = {
    "red": (214, 40, 40),
    "green": (44, 160, 44),
    "blue": (35, 75, 200),
    "yellow": (240, 210, 30),
    "purple": (150, 50, 180),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 11, "big": 19}  # pixels across, in a cell of 24
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
CELL_PIXELS = 24
IMAGE_PIXELS = 3 * CELL_PIXELS
MAX_THINGS = 5
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True, order=True)
class Thing:
    """One drawn object; `cell` is 0..8 in reading order."""

    cell: int
    size: str
    color: str
    shape: str

    @property
    def place(self) -> str:
        return PLACES[self.cell]

    @property
    def row(self) -> int:
        return self.cell // 3

    @property
    def column(self) -> int:
        return self.cell % 3

    @property
    def words(self) -> str:
        return f"{self.size} {self.color} {self.shape}"


Scene = tuple[Thing, ...]  # sorted by cell


def split_of(scene: Scene) -> str:
    """The one split a scene may appear in: 90 % train, 5 % validation, 5 % test, by content."""
    text = ";".join(f"{thing.cell} {thing.words}" for thing in scene)
    bucket = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") % 20
    return "train" if bucket < 18 else "validation" if bucket == 18 else "test"


def sample_scene(rng: random.Random, split: str, num_things: int | None = None) -> Scene:
    """A scene of 2 to 5 objects of the split; attributes repeat often, so that counts exceed 1."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    size = num_things or rng.randint(2, MAX_THINGS)
    while True:
        cells = sorted(rng.sample(range(9), size))
        things: list[Thing] = []
        for cell in cells:
            like = rng.choice(things) if things else None
            color = like.color if like and rng.random() < 0.35 else rng.choice(tuple(COLORS))
            shape = like.shape if like and rng.random() < 0.35 else rng.choice(SHAPES)
            things.append(Thing(cell, rng.choice(tuple(SIZES)), color, shape))
        scene = tuple(things)
        if split_of(scene) == split:
            return scene


def draw_scene(scene: Scene, rng: random.Random, pixels: int = IMAGE_PIXELS) -> Image.Image:
    """Draw a scene at `pixels` square: varied background, jitter, tints and noise come from `rng`."""
    work = 2 * pixels  # drawn at twice the size, then halved: smooth edges
    unit = work / IMAGE_PIXELS
    shade = rng.randint(190, 250) if rng.random() < 0.7 else rng.randint(5, 50)
    background = tuple(max(0, min(255, shade + rng.randint(-14, 14))) for _ in range(3))
    image = Image.new("RGB", (work, work), background)
    draw = ImageDraw.Draw(image)
    for thing in scene:
        across = SIZES[thing.size] + rng.uniform(-1, 1)
        room = (CELL_PIXELS - across) / 2
        jitter = min(room, 3.0)
        x = (thing.column + 0.5) * CELL_PIXELS + rng.uniform(-jitter, jitter)
        y = (thing.row + 0.5) * CELL_PIXELS + rng.uniform(-jitter, jitter)
        fill = tuple(max(0, min(255, v + rng.randint(-18, 18))) for v in COLORS[thing.color])
        _draw_shape(draw, thing.shape, x * unit, y * unit, across * unit / 2, fill)
    image = image.resize((pixels, pixels), Image.Resampling.BOX)
    noise = np.random.default_rng(rng.getrandbits(64)).normal(
        0.0, rng.uniform(0, 8), size=(pixels, pixels, 3)
    )
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill: tuple[int, ...]
) -> None:
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "square":
        draw.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x + r, y + r), (x - r, y + r)], fill=fill)
    elif shape == "cross":
        arm = r / 3
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
    else:
        raise ValueError(f"shape must be one of {SHAPES}, got {shape!r}")
