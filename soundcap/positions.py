"""Rotary positions of the Qwen2.5 family, in three axes (time, height, width).

transformers and vLLM disagree about Qwen2.5-VL: after a video, transformers goes on at `start + max(h, w) / 2`, vLLM
(and the model's own documentation) at the largest position so far plus one. Below a long side of about 420 px an
8-s clip falls in the gap, so text would read different positions in training and in serving. This module computes
vLLM's, and every engine and the fine-tuning are given them explicitly.
"""

import numpy as np

TEXT, VIDEO, AUDIO = 0, 2, 3
"""Kinds of token. 0 and 2 are transformers' `mm_token_type_ids`; audio has no code there."""


def rope_positions(
    kinds: np.ndarray, grid_thw: tuple[int, int, int], second_per_grid: float, positions_per_second: float
) -> np.ndarray:
    """Positions of one sequence that holds one video, alone or interleaved with its audio.

    `kinds` (L,) is TEXT, VIDEO or AUDIO for each token; video and audio tokens form one contiguous block. `grid_thw` is
    the video's grid *after* spatial merging: (frame pairs, rows, columns). `second_per_grid` is the time between
    two frame pairs, `positions_per_second` the checkpoint's unit of time.

    Text counts up by one. In the block that starts at s, the video token of pair t, row y, column x is at
    s + (floor(t * second_per_grid * positions_per_second), y, x) and the m-th audio token (40 ms each) at s + m on all
    axes, so that what sounds together is seen together. Text resumes at the largest position of the block plus one.

    Returns (3, L) int64. Raises ValueError if the video tokens do not fill the grid.
    """
    n_pairs, rows, columns = grid_thw
    is_video, is_audio = kinds == VIDEO, kinds == AUDIO
    if is_video.sum() != n_pairs * rows * columns:
        raise ValueError(
            f"got {is_video.sum()} video tokens, wanted {n_pairs * rows * columns} for grid {grid_thw}"
        )
    block = np.flatnonzero(is_video | is_audio)
    start, stop = int(block[0]), int(block[-1]) + 1
    assert stop - start == len(block), "the video and its audio form one contiguous block"

    positions = np.tile(np.arange(len(kinds)), (3, 1))
    pair, row, column = np.indices((n_pairs, rows, columns)).reshape(3, -1)
    # float32 on the way, because that is how the interval reaches vLLM's and transformers' own arithmetic
    interval = float(np.float32(second_per_grid)) * positions_per_second
    positions[:, is_video] = start + np.stack([(pair * interval).astype(np.int64), row, column])
    positions[:, is_audio] = start + np.arange(is_audio.sum())
    positions[:, stop:] = positions[:, start:stop].max() + 1 + np.arange(len(kinds) - stop)
    return positions
