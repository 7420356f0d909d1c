"""clips -> features -> flowley -> samples -> scores on real films, tiny real encoders and the label as caption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowley.network.flowley import Flowley
from flowley.training.ema import synthesise
from miniature.world.corpus import generate_corpus
from pipelines.config_file import load_config
from pipelines.engine.plan import make_plan
from pipelines.engine.runner import run_stages
from pipelines.engine.stage import Stage
from pipelines.engine.storage import Storage
from pipelines.errors import RunError, UserError
from pipelines.media.probe import probe
from pipelines.media.process import Deadline
from pipelines.run_config import Config
from pipelines.stages.clips import ClipsStage
from pipelines.stages.features import TEXT, FeaturesStage
from pipelines.stages.flowley import FlowleyStage
from pipelines.stages.samples import SamplesStage
from pipelines.stages.scores import ScoresStage

pytestmark = pytest.mark.first

ROOT = Path(__file__).parents[2]
STAGES: list[Stage] = [ClipsStage(), FeaturesStage(), FlowleyStage(), SamplesStage(), ScoresStage()]
CLIPS = 6
MMAUDIO = {
    "preset": "mmaudio_small_16k",
    "overrides": {
        "D": 64, "N1": 2, "N2": 2, "heads": 2, "mlp_multiple": 32, "latent_dim": 64, "visual_dim": 64,
        "text_dim": 64, "max_text_tokens": 32, "synchformer_dim": 12,
    },
}  # fmt: skip
EXECUTION = {
    "log_every_steps": 2, "validate_every_steps": 2, "checkpoint_every_steps": 2, "sample_every_steps": 2,
    "sample_clips": 1, "ema_snapshots": 2,
}  # fmt: skip
Load = Callable[..., Config]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory, tiny_encoder_builders: dict) -> Load:
    folder = tmp_path_factory.mktemp("run")
    generate_corpus(folder / "corpus", clips=CLIPS, seed=4, workers=2)
    for name, build in tiny_encoder_builders.items():
        (folder / name).mkdir()
        build(folder / name, 0)

    def load_run(*overrides: str) -> Config:
        return load_config(
            ROOT / "configs" / "demo.yaml",
            [
                f"root={folder}/store", f"source.folder={folder}/corpus/videos",
                f"source.table={folder}/corpus/vggsound.csv", "features.captions=label",
                f"features.visual.path={folder}/clip", f"features.text.path={folder}/t5",
                "flowley.training={steps: 4, batch_size: 2, duration_s: 4.0, warmup_steps: 1}",
                f"flowley.execution.settings={EXECUTION}",
                "flowley.execution.cpus_per_worker=1", "samples.steps=2",
                *(f"{stage}.execution.workers=1" for stage in ("clips", "features", "samples", "scores")), *overrides,
            ],
        )  # fmt: skip

    return load_run


def run(config: Config) -> dict[str, Any]:
    return {one.manifest.stage: one.manifest for one in run_stages(STAGES, config, say=lambda message: None)}


def test_from_films_to_scores_and_nothing_twice(load: Load, local_ray: None) -> None:
    config = load()
    first = run(config)
    for stage, manifest in first.items():
        assert manifest.rows_in == manifest.rows_out + manifest.rows_quarantined, stage
    storage = Storage(config.root)
    samples = storage.read_table(f"samples/{first['samples'].fingerprint}/rows.parquet").to_pylist()
    features = storage.read_table(f"features/{first['features'].fingerprint}/rows.parquet").to_pylist()
    assert {row["clip_id"] for row in samples} == {row["clip_id"] for row in features if row["split"] == "test"}
    assert all(row["caption"] == row["label"] != "" for row in features)
    for row in samples:
        wave, hz = soundfile.read(storage.path(row["audio"]))
        assert (len(wave), hz) == (4 * 16_000, 16_000) and np.isfinite(wave).all()
        film = probe(Path(storage.path(row["video"])), Deadline(60))
        assert film.audio is not None and film.video is not None
    check_training(storage, f"flowley/{first['flowley'].fingerprint}", first["flowley"].fingerprint)
    scores = storage.read_json(f"scores/{first['scores'].fingerprint}/scores.json")
    assert scores["n_clips"] == len(samples) and 0 <= scores["set_metrics"]["onset_f1"] <= 1

    assert {plan.state for plan in make_plan(STAGES, config, storage)} == {"done"}
    other = {p.name: p.state for p in make_plan(STAGES, load("samples.steps=3"), storage)}
    assert other["flowley"] == "done" and other["samples"] == "to_run", "a sampler's setting trains nothing again"


def check_training(storage: Storage, output: str, run_name: str) -> None:
    """Network, curve, snapshots of the averages, sounds and TensorBoard's log that a training leaves."""
    model = Path(storage.path(f"{output}/model"))
    network = Flowley.from_pretrained(model)
    assert network.features is not None and network.features.duration_s == 4.0
    curve = storage.read_json(f"{output}/loss.json")
    assert [(report["step"], report["validation_loss"] is not None) for report in curve] == [(2, True), (4, True)]
    snapshots = {file.name for file in (model.parent / "ema").iterdir()}
    assert snapshots == {f"{index}.{step}.pt" for index in (0, 1) for step in (2, 4)}
    assert synthesise(model, 0.2).config == network.config
    [clip] = storage.read_json(f"{output}/sounds/clips.json")
    for step in (2, 4):
        wave, hz = soundfile.read(storage.path(f"{output}/sounds/{step:08d}-0.flac"))
        assert (len(wave), hz) == (4 * 16_000, 16_000)
    board = EventAccumulator(storage.path(f"runs/tensorboard/{run_name}")).Reload()
    assert [event.step for event in board.Scalars("loss/train")] == [2, 4]
    assert [event.step for event in board.Audio(f"sound/0/{clip}")] == [2, 4]


@pytest.mark.slow
def test_the_peer_takes_given_synchronisation_features(load: Load, local_ray: None, tmp_path: Path) -> None:
    """A clip without them, and one whose file holds something else, are quarantined with the reason."""
    rng = np.random.default_rng(0)
    config = load(f"flowley.preset={MMAUDIO['preset']}", f"flowley.overrides={MMAUDIO['overrides']}",
                  f"features.sync={tmp_path}")  # fmt: skip
    stems = sorted(Path(info.name).stem for info in Storage(config.source.folder).files())
    for stem in stems[1:]:
        np.save(tmp_path / f"{stem}.npy", rng.normal(size=(96, 12)).astype(np.float32))
    np.save(tmp_path / f"{stems[1]}.npy", np.zeros((96, 11), np.float32))
    manifests = run(config)
    quarantine = Storage(config.root).read_table(f"features/{manifests['features'].fingerprint}/quarantine.parquet")
    reasons = {row["error_class"]: row["message"] for row in quarantine.to_pylist()}
    assert f"no {stems[0]}.npy in features.sync" in reasons["NoSyncFeatures"]
    assert "shape (96, 11), wanted finite floats (96 or more, 12)" in reasons["ValueError"]
    assert manifests["features"].rows_out == CLIPS - 2
    assert manifests["samples"].rows_out == manifests["scores"].rows_out >= 1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([f"flowley.preset={MMAUDIO['preset']}"], "takes synchronisation features \\(L, 768\\)"),
        (["features.sync=/nowhere"], "preset tiny takes none; leave it out"),
        ([f"flowley.preset={MMAUDIO['preset']}", "features.sync=/nowhere"], "no .npy file in '/nowhere'"),
    ],
)
def test_synchronisation_features_that_do_not_fit_the_preset(load: Load, overrides: list[str], words: str) -> None:
    config = load(*overrides)
    with pytest.raises(UserError, match=words):
        run_stages(STAGES, config, say=lambda message: None)


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        ("{name: mmaudio_16k}", "codec mmaudio_16k loads its weights from there"),
        ("{name: log_mel, path: weights}", "log_mel has no weights"),
        ("{name: encodec}", "features.codec.name: got 'encodec'"),
    ],
)
def test_codecs_that_cannot_be(load: Load, codec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(f"features.codec={codec}")


def test_an_empty_caption_that_cannot_be_encoded_ends_the_stage_in_one_line() -> None:
    made = pa.table({"error_class": ["", "ValueError"], "message": ["", "no such token"]})
    with pytest.raises(RunError, match=r"empty caption.* ValueError: no such token; mend features.text"):
        FeaturesStage().finish(None, None, {TEXT: made})  # type: ignore[arg-type]
