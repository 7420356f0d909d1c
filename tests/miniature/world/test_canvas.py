"""The canvas: placed pictures are the same, only smaller and elsewhere."""

import numpy as np
import pytest

from miniature.world.canvas import Canvas


def draw_one_of_each(canvas: Canvas) -> None:
    canvas.disc(40, 30, 17, (1.0, 0.2, 0.1))
    canvas.ellipse(110, 34, 30, 14, (0.1, 0.8, 0.2), 0.6)
    canvas.ring(80, 62, 34, 20, 5, (0.2, 0.2, 0.9))
    canvas.line(10, 110, 150, 66, 7, (0.9, 0.9, 0.1))
    canvas.box(120, 92, 22, 12, (0.8, 0.1, 0.8), turn=0.4)


def averaged(image: np.ndarray, block: int) -> np.ndarray:
    height, width, _ = image.shape
    return image.reshape(height // block, block, width // block, block, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("block", [2, 4])
def test_placed_draws_the_same_picture_smaller_and_elsewhere(block):
    """As if it were drawn on a bigger canvas and looked at from afar."""
    large = Canvas(np.full((120, 160, 3), 0.5, np.float32))
    draw_one_of_each(large)
    wanted = averaged(large.image, block)
    rows, columns = wanted.shape[:2]
    small = Canvas(np.full((60, 100, 3), 0.5, np.float32))
    right, down = (3, 7) if block == 4 else (19, 0)
    draw_one_of_each(small.placed(1 / block, right, down))
    shown = small.image[down : down + rows, right : right + columns]
    assert np.abs(shown - wanted[:60]).mean() < 0.01 and np.abs(shown - wanted[:60]).max() < 0.25
    small.image[down : down + rows, right : right + columns] = 0.5
    assert np.allclose(small.image, 0.5), "and nowhere else"


def test_placed_cuts_what_does_not_fit():
    small, large = (Canvas(np.zeros(shape, np.float32)) for shape in ((60, 80, 3), (180, 240, 3)))
    draw_one_of_each(small.placed(0.9, -40, -30))
    draw_one_of_each(large.placed(0.9, 40, 30))
    assert np.allclose(small.image, large.image[60:120, 80:160], atol=1e-4)
