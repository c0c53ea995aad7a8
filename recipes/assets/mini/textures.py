"""The texture task: fourteen families of procedural patterns.

Each family is one small function of a `Mesh`; `draw_texture` picks one and gives it contrast,
uneven light and noise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recipes.assets.mini.canvas import SIZE, GreyImage, Picture, clouds, noise, to_grey


@dataclass(frozen=True)
class Mesh:
    """Pixel coordinates [S, S], tilted a little and shifted, and the period of the pattern."""

    columns: Picture
    rows: Picture
    x: Picture
    y: Picture
    period: float

    def stripes(self, along: Picture) -> Picture:
        """Return 1 on every other half period of `along`, 0 between."""
        high: Picture = np.sin(2 * np.pi * along / self.period) > 0
        return high.astype(np.float32)


def random_mesh(rng: np.random.Generator) -> Mesh:
    """Draw a tilt, a shift and a period."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    tilt = rng.uniform(-0.05, 0.05)
    x = columns * np.cos(tilt) + rows * np.sin(tilt) + rng.uniform(0, 30)
    y = -columns * np.sin(tilt) + rows * np.cos(tilt) + rng.uniform(0, 30)
    return Mesh(columns, rows, x, y, period=rng.uniform(3.5, 9))


def horizontal_stripes(rng: np.random.Generator, mesh: Mesh) -> Picture:
    """Level bars."""
    return mesh.stripes(mesh.y)


def vertical_stripes(rng: np.random.Generator, mesh: Mesh) -> Picture:
    """Upright bars."""
    return mesh.stripes(mesh.x)


def diagonal_stripes(rng: np.random.Generator, mesh: Mesh) -> Picture:
    """Bars rising or falling at 45 degrees."""
    slope = 1 if rng.random() < 0.5 else -1
    return mesh.stripes((mesh.x + slope * mesh.y) / 1.414)


def checkerboard(rng: np.random.Generator, mesh: Mesh) -> Picture:
    """Squares of two greys."""
    return np.abs(mesh.stripes(mesh.x) - mesh.stripes(mesh.y))


def dot_grid(rng: np.random.Generator, mesh: Mesh) -> Picture:
    """Discs in rows and columns."""
    across = mesh.x % mesh.period - mesh.period / 2
    down = mesh.y % mesh.period - mesh.period / 2
    return (across**2 + down**2 < (mesh.period * 0.3) ** 2).astype(np.float32)


def random_dots(rng: np.random.Generator, mesh: Mesh) -> Picture:
    """Discs anywhere, more of them when they are small."""
    picture = np.zeros((SIZE, SIZE), np.float32)
    for _ in range(int(500 / mesh.period**2) + 3):
        column, row = rng.uniform(0, SIZE, 2)
        inside = (mesh.columns - column) ** 2 + (mesh.rows - row) ** 2 < (mesh.period * 0.25) ** 2
        picture[inside] = 1
    return picture


def rings(rng: np.random.Generator, mesh: Mesh) -> Picture:
    """Circles about one middle."""
    column, row = rng.uniform(4, SIZE - 4, 2)
    return mesh.stripes(np.sqrt((mesh.columns - column) ** 2 + (mesh.rows - row) ** 2))


def grain(rng: np.random.Generator, mesh: Mesh) -> Picture:
    """Every pixel by chance."""
    return rng.uniform(0, 1, (SIZE, SIZE)).astype(np.float32)


def gradient(rng: np.random.Generator, mesh: Mesh) -> Picture:
    """From dark to light in any direction."""
    angle = rng.uniform(0, 2 * np.pi)
    ramp = mesh.columns * np.cos(angle) + mesh.rows * np.sin(angle)
    picture: Picture = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    return picture


def bricks(rng: np.random.Generator, mesh: Mesh) -> Picture:
    """Courses shifted by half a brick."""
    course = np.floor(mesh.y / mesh.period)
    shifted = mesh.x + (course % 2) * mesh.period
    in_brick: Picture = (mesh.y % mesh.period > 1.2) & (shifted % (2 * mesh.period) > 1.2)
    return in_brick.astype(np.float32)


def crosshatch(rng: np.random.Generator, mesh: Mesh) -> Picture:
    """Thin lines both ways."""
    on_line = (mesh.x % mesh.period < 1.2) | (mesh.y % mesh.period < 1.2)
    return on_line.astype(np.float32)


def zigzag(rng: np.random.Generator, mesh: Mesh) -> Picture:
    """Level bars folded up and down."""
    return mesh.stripes(mesh.y + np.abs(mesh.x % (2 * mesh.period) - mesh.period))


def triangles(rng: np.random.Generator, mesh: Mesh) -> Picture:
    """Squares cut along the diagonal."""
    return (mesh.x % mesh.period > mesh.y % mesh.period).astype(np.float32)


def smooth_clouds(rng: np.random.Generator, mesh: Mesh) -> Picture:
    """Smooth light in four to seven cells."""
    return clouds(rng, int(rng.integers(4, 8)))


# In the order of the task's class names.
PATTERNS: tuple[Callable[[np.random.Generator, Mesh], Picture], ...] = (
    horizontal_stripes,
    vertical_stripes,
    diagonal_stripes,
    checkerboard,
    dot_grid,
    random_dots,
    rings,
    grain,
    gradient,
    bricks,
    crosshatch,
    zigzag,
    triangles,
    smooth_clouds,
)


def draw_texture(rng: np.random.Generator, label: int) -> GreyImage:
    """Draw one image of the texture class `label`."""
    picture = PATTERNS[label](rng, random_mesh(rng))
    if rng.random() < 0.5:
        picture = 1 - picture
    picture = 0.5 + (picture - 0.5) * rng.uniform(0.7, 1) + noise(rng, 0.03)
    return to_grey(fade(rng, picture))


def fade(rng: np.random.Generator, picture: Picture) -> Picture:
    """Lower the contrast, light the picture unevenly and add noise: what makes the task hard."""
    faded = 0.5 + (picture - 0.5) * rng.uniform(0.35, 1)
    lit = faded + 0.25 * (clouds(rng, 3) - 0.5)
    return lit + noise(rng, rng.uniform(0.02, 0.14))
