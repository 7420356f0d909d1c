"""Feature files: what is written is what is read, small, without copies, and errors name the clip."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from flowley.features.dataset import Entry, FeatureDataset, Row, collate, index_files, latent_statistics
from flowley.features.files import (
    EMPTY_CAPTION_ID,
    AVFeatures,
    FeatureFile,
    TextFeatures,
    decode_std,
    encode_std,
    write_av_features,
    write_text_features,
)
from flowley.network.config import MMAudioConfig
from flowley.network.presets import preset
from flowley.training.trainer import step_clips

DIMS: dict[str, Any] = {"visual_dim": 6, "latent_dim": 4, "text_dim": 5}
CONFIG = preset("tiny", **DIMS)
PEER = preset("mmaudio_small_16k", **DIMS, synchformer_dim=3)
rng = np.random.default_rng(0)


def av(clip_id: str, *, L_vis: int = 8, L_aud: int = 32, C_vis: int = 6, C_aud: int = 4) -> AVFeatures:
    mean = rng.normal(size=(L_aud, C_aud))
    return AVFeatures(clip_id, rng.normal(size=(L_vis, C_vis)), mean, 0.1 * rng.random((L_aud, C_aud)))


def text(clip_id: str, tokens: int, C: int = 5) -> TextFeatures:
    return TextFeatures(clip_id, rng.normal(size=(tokens, C)), tokens)


def corpus(folder: Path, n: int = 7) -> tuple[list[AVFeatures], list[TextFeatures], FeatureDataset]:
    """n clips in one file of features, captions in reverse order in another."""
    clips, captions = [av(f"c{k}") for k in range(n)], [text(f"c{k}", k + 1) for k in range(n)]
    write_av_features(folder / "av.arrow", clips)
    write_text_features(folder / "text.arrow", captions[::-1])
    entries = [
        Entry(f"c{k}", Row(str(folder / "av.arrow"), k), Row(str(folder / "text.arrow"), n - 1 - k)) for k in range(n)
    ]
    return clips, captions, FeatureDataset(entries)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    clips, captions, dataset = corpus(tmp_path)
    for k in (6, 0, 3):
        clip = dataset[k]
        assert clip.clip_id == f"c{k}"
        np.testing.assert_array_equal(clip.visual, clips[k].visual.astype(np.float16))
        np.testing.assert_array_equal(clip.audio_mean, clips[k].audio_mean.astype(np.float16))
        np.testing.assert_allclose(clip.audio_std, clips[k].audio_std, rtol=0.023, atol=3e-4)
        np.testing.assert_array_equal(clip.text, captions[k].text.astype(np.float16))


def test_clips_by_the_rows_of_their_files(tmp_path: Path) -> None:
    """In the order of the first; without what only one kind has; the empty caption is the null text."""
    corpus(tmp_path)
    empty = text(EMPTY_CAPTION_ID, 1)
    write_text_features(tmp_path / "more.arrow", [empty, text("other", 2)])
    av_rows = index_files([tmp_path / "av.arrow"])
    text_rows = index_files([tmp_path / "text.arrow", tmp_path / "more.arrow"])
    assert text_rows["c6"] == Row(str(tmp_path / "text.arrow"), 0)
    del text_rows["c2"]
    dataset = FeatureDataset.from_rows(av_rows, text_rows)
    assert [dataset[k].clip_id for k in range(len(dataset))] == ["c0", "c1", "c3", "c4", "c5", "c6"]
    assert dataset[5].n_tokens == 7 and dataset.null_text is not None
    np.testing.assert_array_equal(dataset.null_text, empty.text.astype(np.float16))
    assert FeatureDataset.from_rows(av_rows, index_files([tmp_path / "text.arrow"])).null_text is None


def test_many_record_batches(tmp_path: Path) -> None:
    captions = [text(f"c{k}", 1 + k % 3) for k in range(600)]
    write_text_features(tmp_path / "t.arrow", captions)
    file = FeatureFile(tmp_path / "t.arrow")
    for row, want in enumerate(captions):
        assert file.clip_id(row) == want.clip_id
        np.testing.assert_array_equal(file.array("text", row), want.text.astype(np.float16))


def test_reading_does_not_copy(tmp_path: Path) -> None:
    write_av_features(tmp_path / "av.arrow", [av("a", L_vis=64, C_vis=768)])
    before = pa.total_allocated_bytes()
    view = FeatureFile(tmp_path / "av.arrow").array("visual", 0)
    assert pa.total_allocated_bytes() - before < 10_000
    assert not view.flags.owndata and not view.flags.writeable


def test_size_of_a_clip_at_the_papers_settings(tmp_path: Path) -> None:
    """64 x 768 visual, 250 x 20 mean and std, 40 x 1024 text: at most 200 kB."""
    clips = [av(f"{k:040d}", L_vis=64, L_aud=250, C_vis=768, C_aud=20) for k in range(20)]
    write_av_features(tmp_path / "av.arrow", clips)
    write_text_features(tmp_path / "text.arrow", [text(f"{k:040d}", 40, 1024) for k in range(20)])
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) / 20 <= 200_000


def test_a_deterministic_codec_pays_nothing_for_its_std(tmp_path: Path) -> None:
    clip = av("a")
    still = AVFeatures("a", clip.visual, clip.audio_mean, np.zeros_like(clip.audio_mean))
    sizes = []
    for c in (clip, still):
        write_av_features(tmp_path / "av.arrow", [c])
        sizes.append((tmp_path / "av.arrow").stat().st_size)
    assert sizes[0] - sizes[1] >= clip.audio_mean.size
    write_text_features(tmp_path / "t.arrow", [text("a", 2)])
    entry = Entry("a", Row(str(tmp_path / "av.arrow"), 0), Row(str(tmp_path / "t.arrow"), 0))
    assert not FeatureDataset([entry])[0].audio_std.any()


def test_std_codes() -> None:
    std = np.geomspace(3e-4, 14, 1000)
    np.testing.assert_allclose(decode_std(encode_std(std)).astype(float), std, rtol=0.0225)
    assert not decode_std(encode_std(np.zeros(3))).any()
    assert (decode_std(encode_std(np.array([1e-9]))) > 0).all()


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        (av("bad", C_vis=7), r"clip 'bad': visual of shape \(8, 7\), wanted \(length >= 1, 6\)"),
        (av("bad", L_vis=0), "clip 'bad': visual of shape"),
        (AVFeatures("bad", np.full((8, 6), np.nan), *[np.zeros((32, 4))] * 2), "visual is not finite"),
        (AVFeatures("bad", np.full((8, 6), 1e6), *[np.zeros((32, 4))] * 2), "visual is not finite"),
        (AVFeatures("bad", np.zeros((8, 6)), np.zeros((32, 4)), np.zeros((31, 4))), "audio_std of shape"),
        (AVFeatures("bad", np.zeros((8, 6)), np.zeros((32, 4)), -np.ones((32, 4))), "no value below 0"),
    ],
)
def test_bad_clips_are_named(clip: AVFeatures, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        write_av_features(tmp_path / "av.arrow", [av("good"), clip])


def test_files_that_are_not_features(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"not an arrow file at all")
    with pytest.raises(ValueError, match="not a feature file"):
        FeatureFile(tmp_path / "x")
    with pa.ipc.new_file(str(tmp_path / "y"), pa.schema([("a", pa.int8())])):
        pass
    with pytest.raises(ValueError, match="has feature format None, wanted 4"):
        FeatureFile(tmp_path / "y")


def test_shifted_rows_are_noticed(tmp_path: Path) -> None:
    _, _, dataset = corpus(tmp_path)
    wrong = Entry("c1", dataset.entries[0].av, dataset.entries[1].text)
    with pytest.raises(ValueError, match=r"av.arrow row 0 holds 'c0', wanted clip 'c1'"):
        FeatureDataset([wrong])[0]


def test_dataset_travels_to_loader_processes(tmp_path: Path) -> None:
    _, _, dataset = corpus(tmp_path)
    first = dataset[0]
    again = pickle.loads(pickle.dumps(dataset))[0]
    np.testing.assert_array_equal(first.visual, again.visual)


def test_collate_pads_captions_and_cuts_clips(tmp_path: Path) -> None:
    _, captions, dataset = corpus(tmp_path)
    batch = collate([dataset[k] for k in (1, 4)], CONFIG, 0.875)
    assert batch.audio_mean.shape == batch.audio_std.shape == (2, 28, 4)
    assert batch.conditions.visual.shape == (2, 7, 6)
    assert batch.conditions.text_mask.sum(1).tolist() == [2, 5]
    np.testing.assert_array_equal(batch.conditions.text[0, :2], captions[1].text.astype(np.float16))
    assert not batch.conditions.text[0, 2:].any()
    assert collate([dataset[1]], CONFIG, 0.875, L_txt=9).conditions.text.shape == (1, 9, 5)
    with pytest.raises(ValueError, match="clip 'c0' has 8 visual frames, wanted 9: shorten"):
        collate([dataset[0]], CONFIG, 1.03)


def test_captions_with_their_padding(tmp_path: Path) -> None:
    """Features of padding travel along, for networks that attend to it; the mask still says what is padding."""
    padded = TextFeatures("c0", rng.normal(size=(6, 5)), 2)
    write_av_features(tmp_path / "av.arrow", [av("c0")])
    write_text_features(tmp_path / "text.arrow", [padded])
    dataset = FeatureDataset([Entry("c0", Row(str(tmp_path / "av.arrow"), 0), Row(str(tmp_path / "text.arrow"), 0))])
    batch = collate([dataset[0]], CONFIG, 1.0)
    np.testing.assert_array_equal(batch.conditions.text[0], padded.text.astype(np.float16))
    assert batch.conditions.text_mask.tolist() == [[True, True, False, False, False, False]]
    assert FeatureFile(tmp_path / "text.arrow").n_tokens(0) == 2
    for n in (0, 7):
        with pytest.raises(ValueError, match=f"clip 'c0': n_tokens = {n} of 6"):
            write_text_features(tmp_path / "bad.arrow", [TextFeatures("c0", padded.text, n)])


def test_synchronisation_features(tmp_path: Path) -> None:
    """Kept beside picture and sound, of all clips or none; cut to whole segments in a batch."""
    sync = rng.normal(size=(26, 3))
    clips = [AVFeatures(c.clip_id, c.visual, c.audio_mean, c.audio_std, sync) for c in (av("c0"), av("c1"))]
    write_av_features(tmp_path / "av.arrow", clips)
    write_text_features(tmp_path / "text.arrow", [text("c0", 2)])
    entry = Entry("c0", Row(str(tmp_path / "av.arrow"), 0), Row(str(tmp_path / "text.arrow"), 0))
    batch = collate([FeatureDataset([entry])[0]], PEER, 1.0)
    assert batch.conditions.sync is not None and isinstance(PEER, MMAudioConfig)
    np.testing.assert_array_equal(batch.conditions.sync[0], sync[:24].astype(np.float16))
    with pytest.raises(ValueError, match="clip 'c1' has no sync features, others of its file do"):
        write_av_features(tmp_path / "bad.arrow", [clips[0], av("c1")])
    with pytest.raises(ValueError, match="clip 'c0' has 26 sync frames, wanted 32: shorten"):
        collate([FeatureDataset([entry])[0]], replace(PEER, synchformer_hz=Fraction(32)), 1.0)


def test_statistics_are_of_the_sampled_latent(tmp_path: Path) -> None:
    clips, _, dataset = corpus(tmp_path)
    mean, std = latent_statistics(dataset)
    means = np.concatenate([c.audio_mean for c in clips])
    stds = np.concatenate([c.audio_std for c in clips])
    np.testing.assert_allclose(mean, means.mean(0), atol=1e-2)
    np.testing.assert_allclose(std, np.sqrt(means.var(0) + (stds**2).mean(0)), rtol=1e-2)


def batches(world_size: int = 1, **changes: int) -> list[list[int]]:
    settings = {"batch_size": 4, "seed": 0, "start_step": 0, "end_step": 9} | changes
    ranks = [list(step_clips(10, rank=r, world_size=world_size, **settings)) for r in range(world_size)]
    return [list(chain(*parts)) for parts in zip(*ranks, strict=True)]


def test_every_epoch_sees_every_clip_once() -> None:
    order = list(chain(*batches()))
    for epoch in range(3):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert order[:10] != order[10:20]


def test_order_is_a_function_of_seed_and_step() -> None:
    assert batches(start_step=5) == batches()[5:]
    assert batches(seed=1) != batches()
    assert batches(world_size=2) == batches(), "two workers share the batches of one"


def test_batch_larger_than_the_corpus() -> None:
    got = list(step_clips(3, batch_size=8, seed=0, start_step=0, end_step=math.ceil(3 * 8 / 8)))
    assert [len(b) for b in got] == [8, 8, 8]


def test_batch_must_divide_among_workers() -> None:
    with pytest.raises(ValueError, match="batch_size = 4 over 3 workers"):
        next(step_clips(10, batch_size=4, seed=0, start_step=0, end_step=1, world_size=3))


def test_batch_to_device_is_float32(tmp_path: Path) -> None:
    _, _, dataset = corpus(tmp_path)
    batch = collate([dataset[0]], CONFIG, 1.0).to(torch.device("cpu"))
    assert batch.audio_mean.dtype == batch.conditions.text.dtype == torch.float32
    assert batch.conditions.text_mask.dtype == torch.bool
