from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from soundcap.request import CaptionRequest, FrameSettings, Sampling, check_fields

GOOD = CaptionRequest(
    prompt="Describe the sounds.",
    frames=np.zeros((4, 56, 84, 3), np.uint8),
    frames_fps=2.0,
    audio=np.zeros(32_000, np.float32),
)


def test_a_silent_video_is_a_request() -> None:
    assert replace(GOOD, audio=None).audio is None
    assert GOOD.duration_s == 2.0


def test_sound_that_overshoots_a_little_after_resampling_is_taken() -> None:
    replace(GOOD, audio=np.full(32_000, 1.2, np.float32))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", "  \n", "not blank"),
        ("frames", np.zeros((4, 56, 84, 3), np.float32), "float32, wanted a numpy array of uint8"),
        ("frames", [[0]], "list, wanted a numpy array of uint8"),
        ("frames", np.zeros((4, 3, 56, 84), np.uint8), r"wanted \(T, H, W, 3\)"),
        ("frames", np.zeros((56, 84, 3), np.uint8), r"wanted \(T, H, W, 3\)"),
        ("frames", np.zeros((0, 56, 84, 3), np.uint8), "at least one frame"),
        ("frames_fps", 0.0, "above 0 frames per second"),
        ("frames_fps", float("nan"), "above 0 frames per second"),
        ("audio_hz", 0, "above 0 Hz"),
        ("audio", np.zeros(32_000, np.float64), "float64, wanted a numpy array of float32"),
        ("audio", np.zeros((32_000, 2), np.float32), "mono"),
        ("audio", np.zeros(0, np.float32), "wanted at least 0.05 s"),
        ("audio", np.zeros(500, np.float32), "wanted at least 0.05 s"),
        ("audio", np.full(32_000, np.inf, np.float32), "not finite"),
        ("audio", np.full(32_000, 12_000, np.float32), "divide by full scale"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_wanted(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        replace(GOOD, **{field: value})
    assert str(caught.value).startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
        ("seed", -1),
    ],
)
def test_sampling_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field}: got {value}, wanted"):
        replace(Sampling(max_new_tokens=8), **{field: value})


@pytest.mark.parametrize(
    ("interval", "taken", "refused"),
    [
        ("[1, inf)", [1, 7, None], [0, float("inf"), float("nan")]),
        ("(0, 1]", [0.1, 1], [0, 1.1]),
        ("[0, 1)", [0, 0.9], [-0.1, 1]),
    ],
)
def test_intervals_are_open_and_closed_as_written(interval: str, taken: list[float], refused: list[float]) -> None:
    for value in taken:
        check_fields(SimpleNamespace(x=value), x=interval)
    for value in refused:
        with pytest.raises(ValueError, match=f"^x: got {value}, wanted"):
            check_fields(SimpleNamespace(x=value), x=interval)


@pytest.mark.parametrize(
    ("field", "value"), [("fps", 0.0), ("fps", float("nan")), ("min_px", 0), ("min_px", 500_000), ("max_px", 800)]
)
def test_frame_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"^(fps|min_px|max_px): got .*, wanted"):
        replace(FrameSettings(), **{field: value})
