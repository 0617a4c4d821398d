"""Rendered scenes: coloured shapes on a noisy gradient, with the scene graph that they are rendered from.

A scene has 160 x 128 pixels and three to six objects, each with a shape, a colour and a size. Everything follows from a seed,
so the same seed gives the same image on every machine. One scene in the scene-graph file::

    {"image_id": 17, "width": 160, "height": 128, "seed": "0/train/17", "background": [[201, 204, 190], [228, 221, 230]],
     "objects": [{"shape": "star", "color": "red", "size": "big", "center": [41.2, 80.9], "radius": 19.3, "angle": 0.31}]}
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from random import Random

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 160, 128
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLORS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (240, 222, 40),
    "green": (44, 150, 50),
    "cyan": (50, 205, 215),
    "blue": (35, 70, 200),
    "purple": (140, 60, 170),
    "black": (25, 25, 25),
}
SIZES = {"small": (8.0, 10.5), "big": (15.0, 19.5)}  # radius of the circumscribed circle, in pixels
CLASSES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)  # the classes of the detector
HALVES = ("left", "right", "top", "bottom")
CLEAR_OFFSET = 14.0  # pixels between centres from which on "left of" is clear to the eye

_SUPERSAMPLING = 3
_GAP = 3.0  # free pixels between any two objects, and between an object and the border


@dataclass(frozen=True)
class SceneObject:
    """One object. `center` (x, y) and `radius` are in pixels, `angle` in radians."""

    shape: str
    color: str
    size: str
    center: tuple[float, float]
    radius: float
    angle: float

    def outline(self) -> list[tuple[float, float]]:
        """Corner points (x, y) in pixels; a circle is given as 48 points."""
        (cx, cy), points = self.center, _unit_outline(self.shape)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return [(cx + self.radius * (x * cos - y * sin), cy + self.radius * (x * sin + y * cos)) for x, y in points]

    def box(self) -> tuple[float, float, float, float]:
        """Tight box x1, y1, x2, y2 in pixels."""
        xs, ys = zip(*self.outline(), strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def class_name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """The complete description of an image: rendering it again gives the same pixels."""

    image_id: int
    seed: str
    background: tuple[tuple[int, int, int], tuple[int, int, int]]
    objects: tuple[SceneObject, ...]
    width: int = WIDTH
    height: int = HEIGHT
    key: tuple = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Two scenes with the same objects at (nearly) the same places are the same scene for splitting purposes.
        key = tuple(sorted((o.shape, o.color, o.size, *(round(c / 8) for c in o.center)) for o in self.objects))
        object.__setattr__(self, "key", key)

    def to_dict(self) -> dict:
        """The scene graph as plain JSON data."""
        record = asdict(self)
        del record["key"]
        return record

    @classmethod
    def from_dict(cls, record: dict) -> Scene:
        """The inverse of [`Scene.to_dict`]."""
        objects = tuple(SceneObject(**{**o, "center": tuple(o["center"])}) for o in record["objects"])
        background = tuple(tuple(color) for color in record["background"])
        return cls(**{**record, "objects": objects, "background": background})


def sample_scene(image_id: int, seed: str, num_objects: tuple[int, int] = (3, 6)) -> Scene:
    """Sample a scene whose objects do not touch.

    Args:
        image_id: Id of the image.
        seed: Determines everything in the scene.
        num_objects: Smallest and largest number of objects.
    """
    rng = Random(seed)
    r, g, b = (rng.randint(185, 235) for _ in range(3))
    base = (r, g, b)
    r, g, b = (min(255, max(160, channel + rng.randint(-30, 30))) for channel in base)
    objects: list[SceneObject] = []
    wanted = rng.randint(*num_objects)
    while len(objects) < wanted:
        candidate = _sample_object(rng, objects)
        if all(_far_enough(candidate, placed) for placed in objects):
            objects.append(candidate)
    return Scene(image_id, seed, (base, (r, g, b)), tuple(objects))


def render(scene: Scene) -> Image.Image:
    """Draw the scene as an RGB image with antialiased edges, a background gradient and mild sensor noise."""
    scale = _SUPERSAMPLING
    noise = np.random.default_rng(list(scene.seed.encode()))
    ramp = np.linspace(0.0, 1.0, scene.height)[:, None, None]
    first, second = (np.asarray(color, dtype=np.float64) for color in scene.background)
    canvas = np.broadcast_to(first + (second - first) * ramp, (scene.height, scene.width, 3))
    image = Image.fromarray(canvas.round().astype(np.uint8)).resize((scene.width * scale, scene.height * scale))
    draw = ImageDraw.Draw(image)
    for item in scene.objects:
        shift = noise.integers(-14, 15, size=3)  # shades of a colour vary a little
        fill = tuple(int(np.clip(channel + s, 0, 255)) for channel, s in zip(COLORS[item.color], shift, strict=True))
        draw.polygon([(x * scale, y * scale) for x, y in item.outline()], fill=fill)
    pixels = np.asarray(image.reduce(scale), dtype=np.int16) + noise.integers(-7, 8, size=canvas.shape, dtype=np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _sample_object(rng: Random, placed: list[SceneObject]) -> SceneObject:
    # Colours and shapes often repeat, so that questions about counting and distinguishing make sense.
    shape = rng.choice(placed).shape if placed and rng.random() < 0.25 else rng.choice(SHAPES)
    color = rng.choice(placed).color if placed and rng.random() < 0.25 else rng.choice(tuple(COLORS))
    size = rng.choice(tuple(SIZES))
    radius = rng.uniform(*SIZES[size])
    margin = radius + _GAP
    center = (rng.uniform(margin, WIDTH - margin), rng.uniform(margin, HEIGHT - margin))
    # A square turned by 45 degrees is a diamond, so shapes are rotated only a little.
    return SceneObject(shape, color, size, center, radius, rng.uniform(-0.25, 0.25))


def _far_enough(first: SceneObject, second: SceneObject) -> bool:
    return math.dist(first.center, second.center) > first.radius + second.radius + _GAP


def _unit_outline(shape: str) -> list[tuple[float, float]]:
    """Outline of radius 1 around the origin, y pointing down."""
    if shape == "circle":
        return _regular(48, start=0.0)
    if shape == "square":
        return _regular(4, start=math.pi / 4)
    if shape == "diamond":  # taller than wide, unlike a rotated square
        return [(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)]
    if shape == "triangle":
        return _regular(3, start=-math.pi / 2)
    if shape == "star":
        tips, dents = _regular(5, start=-math.pi / 2), _regular(5, start=-math.pi / 2 + math.pi / 5)
        return [p for tip, (x, y) in zip(tips, dents, strict=True) for p in (tip, (0.42 * x, 0.42 * y))]
    if shape == "cross":
        a, b = 0.32, 0.95
        return [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
    raise ValueError(f"unknown shape {shape!r}; expected one of {', '.join(SHAPES)}")


def _regular(corners: int, start: float) -> list[tuple[float, float]]:
    angles = (start + 2 * math.pi * i / corners for i in range(corners))
    return [(math.cos(a), math.sin(a)) for a in angles]


def half_of(scene: Scene, item: SceneObject, axis: int) -> str | None:
    """The half of the image that the object is in: left or right (`axis` 0), top or bottom (`axis` 1), `None` near the middle."""
    offset = item.center[axis] - (scene.width, scene.height)[axis] / 2
    return HALVES[2 * axis + (offset > 0)] if abs(offset) >= CLEAR_OFFSET else None
