"""Rotary positions of the Qwen2.5 family, on three axes (time, height, width), as the models were trained.

Libraries disagree. For Qwen2.5-VL, transformers 5.16 and later goes on after a video at `start + max(h, w) / 2`,
where the model's authors and vLLM go on at the largest position so far plus one: below a long side of about 420 px
an 8-s clip falls in that gap. For Qwen2.5-Omni with interleaved audio, vLLM 0.32 shifts the whole block by one
token, where the authors and transformers do not. So the positions are computed here, once, for every engine
and the fine-tuning.
"""

import numpy as np

TEXT, VIDEO, AUDIO = 0, 2, 3
"""Kinds of token. 0 and 2 are transformers' `mm_token_type_ids`; audio has no code there."""


def token_kinds(tokens: np.ndarray, video_token: int, audio_token: int | None) -> np.ndarray:
    """TEXT, VIDEO or AUDIO for each of L token ids, (L,) int64. None: the model does not hear."""
    return np.select([tokens == video_token, tokens == audio_token], [VIDEO, AUDIO], TEXT)


def rope_positions(
    kinds: np.ndarray, grid_thw: tuple[int, int, int], second_per_grid: float, positions_per_second: float
) -> np.ndarray:
    """Positions of one sequence that holds one video, alone or interleaved with its audio.

    Text counts up by one. In the block that starts at s, the video token of pair t, row y, column x is at
    s + (floor(t * second_per_grid * positions_per_second), y, x) and the m-th audio token (40 ms each) at
    s + m on all axes, so that what sounds together is seen together. Text resumes at the largest position of
    the video plus one. Around an interleaved block the two markers that open it share one position, as do
    the two that close it, and these follow the chunk (of 2 s of picture or sound) that comes last.

    Args:
        kinds: (L,) TEXT, VIDEO or AUDIO for each token; video and audio tokens form one contiguous block.
        grid_thw: The video's grid *after* spatial merging: (frame pairs, rows, columns).
        second_per_grid: Seconds between two frame pairs.
        positions_per_second: The checkpoint's unit of time.

    Returns:
        (3, L) int64.

    Raises:
        ValueError: The video tokens do not fill the grid.
    """
    n_pairs, rows, columns = grid_thw
    is_video, is_audio = kinds == VIDEO, kinds == AUDIO
    if (n_video := int(is_video.sum())) != n_pairs * rows * columns:
        raise ValueError(f"got {n_video} video tokens, wanted {n_pairs * rows * columns} for grid {grid_thw}")
    block = np.flatnonzero(is_video | is_audio)
    first, stop = int(block[0]), int(block[-1]) + 1
    assert stop - first == len(block), "the video and its audio form one contiguous block"
    shared_marker = 1 if is_audio.any() else 0

    positions = np.tile(np.arange(len(kinds)), (3, 1))
    positions[:, first - shared_marker :] -= shared_marker
    start = first - shared_marker
    pair, row, column = np.indices((n_pairs, rows, columns)).reshape(3, -1)
    # float32 on the way, because that is how the interval reaches the libraries' own arithmetic
    interval = float(np.float32(second_per_grid)) * positions_per_second
    positions[:, is_video] = start + np.stack([(pair * interval).astype(np.int64), row, column])
    positions[:, is_audio] = start + np.arange(is_audio.sum())

    last_chunk = np.flatnonzero(kinds[first:stop] != kinds[stop - 1])
    last_chunk_start = first + (int(last_chunk[-1]) + 1 if len(last_chunk) else 0)
    resume = positions[:, last_chunk_start:stop].max() + 1
    positions[:, stop:] = resume + np.arange(len(kinds) - stop)
    positions[:, stop + 1 :] -= shared_marker
    return positions
