"""A forgotten video leaves no trace in the store but the exclusion, does not come back, and goes from publications."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowley.features.files import AVFeatures, TextFeatures, write_av_features, write_text_features
from pipelines.engine.erase import Layout, erase
from pipelines.engine.exclusion import EXCLUSION, Exclusion, Forgotten, Traces, read_exclusion, write_exclusion
from pipelines.engine.fsck import fsck, gone_files, repair
from pipelines.engine.ledger import Failed, Ledger
from pipelines.engine.plan import make_plan
from pipelines.engine.runner import run_stages
from pipelines.engine.store import LATEST, QUARANTINE_SCHEMA, Manifest, Output, committed_outputs, keep_file, open_store
from pipelines.errors import UserError
from pipelines.publication import forget as forgetting
from pipelines.publication.forget import forget
from pipelines.publication.publish import publish, published
from pipelines.run_config import Config
from pipelines.stages.captions import CaptionsStage
from pipelines.stages.clips import ClipsStage, source_changes
from pipelines.stages.curation import CurationStage
from pipelines.stages.features import AV, AV_PLACE, PARTS_FOLDER, TEXT, TEXT_PLACE
from pipelines.stages.listing import SourceListing
from pipelines.stages.samples import SAMPLES_FOLDER, SOUND
from pipelines.stages.source import HASHES, HashRecipe
from tests.hub_server import WRITER, Hub

ROOT = Path(__file__).parents[3]
SOUNDS = ("dataset", "lab/sounds")


@pytest.fixture
def config(finished: Config, source: Path, tmp_path: Path) -> Config:
    """A finished store and a source of its own."""
    shutil.copytree(finished.root, tmp_path / "store")
    shutil.copytree(source, tmp_path / "source", copy_function=shutil.copy2)
    of = {"folder": str(tmp_path / "source" / "videos"), "table": str(tmp_path / "source" / "vggsound.csv")}
    config = finished.model_copy(
        update={"root": str(tmp_path / "store"), "source": finished.source.model_copy(update=of)}
    )
    run_stages([ClipsStage(), CaptionsStage(), CurationStage()], config, say=lambda _: None)
    return config


@pytest.fixture
def clip(config: Config) -> dict[str, Any]:
    """The second clip of the train split: one that curation kept."""
    rows = clips(config)
    kept = [output.rows() for output in committed_outputs(open_store(config.root), "curation")]
    ids = {row["clip_id"] for table in kept for row in table.to_pylist() if row["kept"]}
    return next(row for row in rows if row["split"] == "train" and row["clip_id"] in ids)


def clips(config: Config) -> list[dict[str, Any]]:
    """Rows of the current output of stage clips."""
    storage = open_store(config.root)
    return Output(storage, "clips", storage.read_json(f"clips/{LATEST}")["fingerprint"]).rows().to_pylist()


def holders(root: Path, *words: str) -> list[str]:
    """Files under a folder whose bytes, or whose decoded Parquet or Arrow, hold any of some words; names too."""
    found = []
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        data = file.read_bytes()
        if data[:4] == b"PAR1":
            data += json.dumps(pq.read_table(file).to_pylist(), default=str, ensure_ascii=False).encode()
        elif file.suffix == ".arrow":
            table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
            data += json.dumps(table.select(["clip_id"]).to_pylist()).encode()
        data += str(file.relative_to(root)).encode()
        if any(word.encode() in data for word in words):
            found.append(str(file.relative_to(root)))
    return found


def add_what_models_make(config: Config, clip: dict[str, Any]) -> dict[str, list[str]]:
    """Puts into a store what only trained models would make: features in shared files, samples, a network's output.

    Also what killed processes, repairs and failures leave. Returns the files of rows.
    """
    storage, rows = open_store(config.root), clips(config)
    folder = Path(storage.path("made"))
    folder.mkdir()
    ids = [row["clip_id"] for row in rows]
    av = [AVFeatures(one, *(np.ones((4, 3), np.float32),) * 3) for one in ids]
    text = [TextFeatures(one, np.ones((2, 3), np.float32), 2) for one in [*ids, ""]]
    others = [one for one in av if one.clip_id != clip["clip_id"]]
    for name, write, made in (
        ("av", write_av_features, av[:]),
        ("text", write_text_features, text),
        ("b", write_av_features, others),
    ):
        write(folder / f"{name}.arrow", made)
    with_clip = keep_file(storage, folder / "av.arrow", f"{PARTS_FOLDER}/av-1.arrow", "av_file")
    without = keep_file(storage, folder / "b.arrow", f"{PARTS_FOLDER}/av-2.arrow", "av_file")
    of_text = keep_file(storage, folder / "text.arrow", f"{PARTS_FOLDER}/text-1.arrow", "text_file")
    ledger = Ledger(storage, AV, AV_PLACE)
    ledger.write([b"a%15d" % i for i in range(len(ids))], ids, [{**with_clip, "av_row": i} for i in range(len(ids))])
    left = [one.clip_id for one in others]
    ledger.write([b"b%15d" % i for i in range(len(left))], left, [{**without, "av_row": i} for i in range(len(left))])
    texts = [{**of_text, "text_row": i, "tokens_cut": 0} for i in range(len(text))]
    Ledger(storage, TEXT, TEXT_PLACE).write([b"t%15d" % i for i in range(len(text))], [*ids, ""], texts)
    sounds = []
    for number in range(len(ids)):
        (folder / "s.mp4").write_bytes(b"sound of %d" % number)
        made = keep_file(storage, folder / "s.mp4", f"{SAMPLES_FOLDER}/{number:024d}.mp4", "video")
        sounds.append({**made, "audio": made["video"], "audio_bytes": 1, "audio_sha256": made["video_sha256"]})
    Ledger(storage, "samples", SOUND).write([b"s%15d" % i for i in range(len(ids))], ids, sounds)
    storage.write_bytes(f"{SAMPLES_FOLDER}/{'f' * 24}.mp4", b"of a killed process")
    storage.write_bytes(f"{PARTS_FOLDER}/av-9.arrow", Path(storage.path(f"{PARTS_FOLDER}/av-1.arrow")).read_bytes())
    storage.write_bytes(f"damaged/captions/x/{'rows'}.parquet", clip["clip_id"].encode())
    storage.write_bytes(f".partial/{'0' * 32}", clip["clip_id"].encode())
    network = Output(storage, "flowley", "0123456789ab")
    network.write_bytes("model/model.safetensors", b"weights")
    storage.write_json("flowley/0123456789ab/sounds/clips.json", [clip["clip_id"]])
    storage.write_bytes("flowley/0123456789ab/sounds/00000001-0.flac", b"sound")
    storage.write_bytes("runs/tensorboard/0123456789ab/events", b"sound/0/" + clip["clip_id"].encode())
    bad = [{"row_id": clip["clip_id"], "stage": "flowley", "error_class": "CannotTrainOn", "message": "m"}]
    bad.append({**bad[0], "row_id": "another"})
    manifest = Manifest("flowley", network.fingerprint, "d", 4, 2, 2, 4, 1.0)
    network.commit(manifest, pa.Table.from_pylist(bad, schema=QUARANTINE_SCHEMA), {})
    captions = Ledger(storage, "captions", pa.schema([("caption", pa.string())]))
    captions.write([b"f" * 16], ["0" * 16], [Failed("Odd", f"beside {clip['source_name']}")])
    folder.rmdir() if not list(folder.iterdir()) else shutil.rmtree(folder)
    return {"going": [with_clip["av_file"], of_text["text_file"]], "staying": [without["av_file"]]}


def test_nothing_is_left_but_the_exclusion(
    config: Config, clip: dict[str, Any], report: Callable[[Config], str]
) -> None:
    made, storage, root = add_what_models_make(config, clip), open_store(config.root), Path(config.root)
    report(config)
    words = (clip["video_id"], clip["clip_id"], clip["source_sha256"])
    kinds = {name.partition("/")[0] for name in holders(root, *words)}
    assert {"clips", "captions", "curation", "features", "ledger", "media", "flowley", "runs"} <= kinds
    lines: list[str] = []
    forget(config, [clip["video_id"]], say=lines.append)
    assert holders(root, *words) == [EXCLUSION]
    for name in [*made["going"], f"{SAMPLES_FOLDER}/{'f' * 24}.mp4", f"{PARTS_FOLDER}/av-9.arrow", "report/index.html"]:
        assert not storage.exists(name), f"{name} is there"
    others = [row for row in config_rows(storage, "samples") if row["row_id"] != clip["clip_id"]]
    assert len(others) == 3 and all(storage.exists(row["video"]) for row in others), "other samples went too"
    assert all(map(storage.exists, made["staying"])), "a file without the clip went too"
    assert {row["row_id"] for row in config_rows(storage, AV)} == {row["row_id"] for row in others}, (
        "rows in the other file went too"
    )
    assert not config_rows(storage, TEXT), "rows whose file is gone stayed"
    network = Output(storage, "flowley", "0123456789ab")
    assert network.committed().rows_quarantined == 2 and gone_files(network) == []
    assert network.quarantine()["row_id"].to_pylist() == ["forgotten", "another"]
    assert not [one.problem for one in fsck(storage)], "what is left is not whole"
    [record] = (storage.read_json(name) for name in storage.names("forgotten"))
    assert (record["videos"], record["clips"], record["removed"]["ledger captions"]["rows"]) == (1, 1, 2)
    assert record["removed"]["media"]["files"] == 2 and record["removed"]["media"]["bytes"] > 1000
    assert any("flowley/0123456789ab" in line and "models stay" in line for line in lines)
    assert any(str(SourceListing(config.source.folder).memory) in line for line in lines)


def config_rows(storage: Any, ledger: str) -> list[dict[str, Any]]:
    """All rows of a ledger."""
    one = Ledger.of_any_schema(storage, ledger)
    return [row for table in one.load(one.parts())[0] for row in table.to_pylist()]


def test_it_does_not_come_back(config: Config, clip: dict[str, Any]) -> None:
    """Not by its id, nor as a copy under another name and in another table; plan and run say so, and go on."""
    storage, stages = open_store(config.root), [ClipsStage(), CaptionsStage(), CurationStage()]
    before = {row["clip_id"] for row in clips(config)}
    forget(config, [clip["video_id"]], say=lambda _: None)
    listing = SourceListing(config.source.folder, rescan=True)
    changes = [str(one) for one in source_changes(config, storage, listing)]
    assert f"source: 1 forgotten ({clip['source_name']})" in changes and not any("removed" in one for one in changes)
    assert [plan.rows_to_run for plan in make_plan(stages, config, storage)] == [0, 0, 3], "captions are made again"
    folder = Path(config.source.folder)
    shutil.copy2(folder / clip["source_name"], folder / "copy_000001.mp4")
    table = Path(config.source.table or "")
    table.write_text(table.read_text() + "\ncopy,1,dog,train\n")
    lines: list[str] = []
    run_stages(stages, config, say=lines.append)
    assert any("source: 2 forgotten" in line for line in lines)
    assert {row["clip_id"] for row in clips(config)} == before - {clip["clip_id"]}
    output = Output(storage, "clips", storage.read_json(f"clips/{LATEST}")["fingerprint"])
    refused = [row for row in output.quarantine().to_pylist() if row["error_class"] == "Forgotten"]
    assert {row["row_id"] for row in refused} == {clip["source_name"], "copy_000001.mp4"}
    manifest = output.committed()
    assert manifest.rows_in == manifest.rows_out + manifest.rows_quarantined
    assert not [row for row in config_rows(storage, HASHES) if row["row_id"] == clip["source_name"]], "it was hashed"
    assert source_changes(config, storage, SourceListing(config.source.folder, rescan=True)) == []
    assert not storage.exists(clip["video"])
    lines.clear()
    forget(config, [clip["video_id"]], say=lines.append)
    assert any(line.startswith(f"{clip['video_id']}: forgotten already, since 20") for line in lines)


def test_a_store_without_exclusion_keeps_its_fingerprints(config: Config, clip: dict[str, Any]) -> None:
    storage, stages = open_store(config.root), [ClipsStage(), CaptionsStage(), CurationStage()]
    before = [plan.fingerprint for plan in make_plan(stages, config, storage)]
    keys = HashRecipe(config.source.folder).keys(["a"], ["1"], ["2"])
    write_exclusion(storage, Exclusion({"nobody's": Forgotten((), ("0" * 64,), ("0" * 16,), is_done=True)}))
    assert [plan.fingerprint for plan in make_plan(stages, config, storage)] == before
    assert [plan.state for plan in make_plan(stages, config, storage)] == ["done"] * 3
    assert HashRecipe(config.source.folder).keys(["a"], ["1"], ["2"]) == keys
    write_exclusion(storage, Exclusion({clip["video_id"]: Forgotten()}))
    assert make_plan(stages, config, storage)[0].fingerprint != before[0]


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "folder"])
def test_a_damaged_exclusion_is_never_taken_for_none(config: Config, clip: dict[str, Any], damage: str) -> None:
    storage, file = open_store(config.root), Path(config.root) / EXCLUSION
    forget(config, [clip["video_id"]], say=lambda _: None)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:40])
    elif damage == "changed":
        file.write_text(file.read_text().replace(clip["video_id"], "another"))
    else:
        file.unlink()
        if damage == "folder":
            file.mkdir()
    calls: list[Callable[[], Any]] = [
        lambda: read_exclusion(storage),
        lambda: make_plan([ClipsStage()], config, storage),
        lambda: run_stages([ClipsStage()], config, say=lambda _: None),
        lambda: forget(config, ["another"], say=lambda _: None),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"forgotten\.json is (gone|not what was written): .*from a copy"):
            call()
    [finding] = [one for one in fsck(storage) if one.name == EXCLUSION]
    repair(storage, [finding])
    assert file.exists() == (damage != "gone"), "the exclusion was set aside"


def test_an_unknown_id_is_an_error_and_changes_nothing(config: Config, clip: dict[str, Any]) -> None:
    wrong = clip["video_id"][:-1] + "Q"
    before = holders(Path(config.root), clip["clip_id"])
    with pytest.raises(UserError, match=rf"{wrong}: no output .* has this video id; did you mean "):
        forget(config, [clip["video_id"], wrong], say=lambda _: None)
    assert holders(Path(config.root), clip["clip_id"]) == before and not (Path(config.root) / EXCLUSION).exists()
    with pytest.raises(UserError, match="holds no store"):
        forget(config.model_copy(update={"root": str(Path(config.root).parent / "none")}), ["a"], say=lambda _: None)


def test_a_video_that_only_the_source_has_and_one_that_only_the_store_has(config: Config, clip: dict[str, Any]) -> None:
    lines: list[str] = []
    forget(config, ["broken"], say=lines.append)
    assert holders(Path(config.root), "broken") == [EXCLUSION], "what is quarantined of it stayed"
    shutil.rmtree(config.source.folder)
    forget(config, [clip["video_id"]], say=lines.append)
    assert holders(Path(config.root), clip["video_id"], clip["clip_id"]) == [EXCLUSION]
    assert any("the source was not looked at: source.folder" in line for line in lines)
    assert sorted(read_exclusion(open_store(config.root)).videos) == sorted(["broken", clip["video_id"]])


@pytest.mark.parametrize("step", [1, 2, 3, 5, 8, 11, 14])
def test_a_killed_forget_goes_on(
    config: Config, clip: dict[str, Any], step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended after some changes of the store, each of which is whole."""
    add_what_models_make(config, clip)
    storage, count = open_store(config.root), 0

    class Killed(BaseException):
        pass

    def counted(name: str) -> None:
        change = getattr(type(storage), name)

        def one(self: Any, *args: Any) -> Any:
            nonlocal count
            count += "lease" not in str(args[0])
            if count > step:
                raise Killed
            return change(self, *args)

        monkeypatch.setattr(type(storage), name, one)

    with monkeypatch.context():
        for name in ("remove_many", "write_record"):
            counted(name)
        with pytest.raises(Killed):
            forget(config, [clip["video_id"]], say=lambda _: None)
    monkeypatch.undo()
    assert read_exclusion(storage).unfinished == [clip["video_id"]], "the exclusion was not written first"
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        run_stages([ClipsStage()], config, say=lines.append)
        assert any(f"soundcap forget CONFIG {clip['video_id']}` goes on" in line for line in lines)
        forget(config, [clip["video_id"]], say=lambda _: None)
    left = holders(Path(config.root), clip["clip_id"], clip["source_sha256"])
    assert left == [EXCLUSION]
    assert not list(fsck(storage)) and storage.names("forgotten") and not read_exclusion(storage).unfinished


def test_a_bucket_is_cleared_as_a_disk_is(s3_url: str) -> None:
    storage = open_store(f"{s3_url}/forget", write=True)
    ledger = Ledger(storage, "clips", pa.schema([*SOUND]))
    for name in ("0" * 16, "1" * 16):
        storage.write_bytes(f"media/{name}.mp4", b"film")
        sound = {"video": f"media/{name}.mp4", "video_bytes": 4, "video_sha256": name * 4}
        ledger.write(
            [name.encode()], [f"{name[0]}.mp4"], [{**sound, "audio": "", "audio_bytes": 0, "audio_sha256": ""}]
        )
    ledger.settle()
    output = Output(storage, "captions", "0123456789ab")
    output.write_rows(pa.table({"clip_id": ["0" * 16], "caption": ["a"]}))
    output.commit(Manifest("captions", output.fingerprint, "d", 1, 1, 0, 1, 1.0), QUARANTINE_SCHEMA.empty_table(), {})
    storage.write_bytes("media/left.mp4", b"of a killed process")
    erased = erase(storage, Traces(frozenset({"0.mp4"}), frozenset({"0" * 16})), Layout(("media",), (), (), ""))
    assert (erased.rows["ledger clips"], erased.files["media"], erased.stages) == (1, 2, {"captions"})
    names = storage.names("")
    assert {name for name in names if name.startswith(("media", "captions"))} == {f"media/{'1' * 16}.mp4"}
    assert len([name for name in names if name.startswith("ledger/clips/") and name.endswith(".parquet")]) == 1
    assert [row["row_id"] for row in config_rows(storage, "clips")] == ["1.mp4"]


def test_the_command(config: Config, clip: dict[str, Any], tmp_path: Path) -> None:
    """Its words and exit codes."""
    from typer.testing import CliRunner

    from pipelines.cli.soundcap import app

    of = [f"root={config.root}", f"source.folder={config.source.folder}", f"source.table={config.source.table}"]
    options = [word for one in of for word in ("--set", one)]
    result = CliRunner().invoke(app, ["forget", str(ROOT / "configs/demo.yaml"), *options, "--", clip["video_id"]])
    assert result.exit_code == 0, result.output
    assert f"{clip['video_id']}: forgotten; {config.root}/forgotten.json keeps it out" in result.output
    assert "`soundcap run` assembles captions, clips, curation, silent_captions again" in result.output
    result = CliRunner().invoke(app, ["forget", str(ROOT / "configs/demo.yaml"), *options, "nobody"])
    assert isinstance(result.exception, UserError), "main turns it into one line and exit code 2"


def test_short_names_do_not_take_others_along(tmp_path: Path) -> None:
    """A video `dog` of a folder without a table: captions that say dog stay."""
    storage = open_store(str(tmp_path), write=True)
    ledger = Ledger(storage, "captions", pa.schema([("caption", pa.string())]))
    ids = ["0" * 16, "1" * 16, "2" * 16]
    said = [{"caption": "A dog barks."}, {"caption": "A dog."}, Failed("Odd", "x/dog.mp4: odd")]
    ledger.write([b"%16d" % i for i in range(3)], ids, said)
    model = Output(storage, "flowley", "0123456789ab")
    model.write_json("model/config.json", {"dog": "dog", "steps": 1})
    bad = [{"row_id": "1" * 16, "stage": "flowley", "error_class": "E", "message": "m"}]
    quarantine = pa.Table.from_pylist(bad, schema=QUARANTINE_SCHEMA)
    model.commit(Manifest("flowley", model.fingerprint, "d", 1, 0, 1, 1, 1.0), quarantine, {})
    traces = Traces(frozenset({"dog", "dog.mp4"}), frozenset({"0" * 16}))
    layout = Layout((), (), {"flowley"}, "")
    erased = erase(storage, traces, layout)
    assert erased.rows["ledger captions"] == 2
    assert [row["row_id"] for row in config_rows(storage, "captions")] == ["1" * 16]
    assert not erase(storage, traces, layout)
    assert not list(fsck(storage)) and model.quarantine().to_pylist() == bad, "a model's settings say dog"


# --- publications ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    found = Hub()
    yield found
    found.close()


@pytest.fixture
def client(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub, without repositories, as that of this process's client."""
    hub.forget()
    for name, value in {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return hub


def made_again(config: Config) -> None:
    """Runs what a forgotten video left to do."""
    run_stages([ClipsStage(), CaptionsStage(), CurationStage()], config, say=lambda _: None)


def test_a_folder_loses_it_with_the_next_publication(config: Config, clip: dict[str, Any], tmp_path: Path) -> None:
    place = tmp_path / "published"
    versioned = config.publish.model_copy(update={"version": "old"})
    for one in (config.model_copy(update={"publish": versioned}), config):
        publish(one, to=place, say=lambda _: None)
    words = (clip["video_id"], clip["clip_id"])
    assert {Path(name).parts[1] for name in holders(place, *words)} >= {"captions", "captions-old"}
    lines: list[str] = []
    forget(config, [clip["video_id"]], say=lines.append)
    assert f"{place}: holds 4 rows; the next `soundcap publish` to it removes them" in lines
    with pytest.raises(UserError, match="nothing to publish: stage c"):
        publish(config, to=place, say=lambda _: None)
    made_again(config)
    publish(config, to=place, say=lambda _: None)
    assert holders(place, *words) == []
    [row] = [
        line
        for line in (place / "README.md").read_text().splitlines()
        if line.startswith("| v3 ") and "| `captions` " in line
    ]
    assert row.endswith("| 0 | 0 | 1 | 1 video forgotten on request |"), row
    record = json.loads((place / "publication.json").read_text())
    assert sum(record["configurations"]["captions-old"]["rows"].values()) == 2, "the other version keeps the others"
    lines.clear()
    forget(config, [clip["video_id"]], say=lines.append)
    assert f"{place}: has none" in lines
    shutil.rmtree(place)
    forget(config, [clip["video_id"]], say=lines.append)
    assert f"{place}: is not there" in lines


def test_cuts_do_not_name_it(client: Hub) -> None:
    from pipelines.publication.table_files import Cuts

    rows = pa.table({"label": ["a", "a", "b", "c"], "clip_id": ["1", "3", "4", "6"]})
    cuts = Cuts(4, [("a", "2"), ("b", ""), ("c", "5"), ("c", "7")])
    moved = cuts.without({"2", "7"}, rows)
    assert moved.starts == [("a", "3"), ("b", ""), ("c", "5")]
    assert {k: v.to_pylist() for k, v in moved.files(rows).items()} == {
        k: v.to_pylist() for k, v in cuts.files(rows).items()
    }


def test_history_on_the_hub_is_told_and_rewritten(config: Config, clip: dict[str, Any], client: Hub) -> None:
    """Versions: v1 has the clip; `later` and `now` come after it was forgotten."""
    lines: list[str] = []

    def again(**options: Any) -> None:
        lines.clear()
        forget(config, [clip["video_id"]], say=lines.append, **options)

    publish(config, push="lab/sounds", say=lambda _: None)
    made = client.repositories[SOUNDS]
    first = made.head.oid
    again()
    told = [line for line in lines if line.startswith("hf://datasets/lab/sounds")]
    assert "its current state holds 2 rows: `soundcap run`, then `soundcap publish` to it, removes them" in told[0]
    assert f"commits {first[:12]} and tags v1 hold it; `--rewrite-history` deletes the tags v1, and" in told[1]
    with pytest.raises(UserError, match=r"current state holds 2 rows.*No tag was deleted"):
        again(rewrite_history=True)
    assert made.tags == {"v1": first} and len(made.commits) == 2
    made_again(config)
    other = config.publish.model_copy(update={"version": "b"})
    for one in (config, config.model_copy(update={"publish": other})):
        publish(one, push="lab/sounds", tag="later" if one is config else "now", say=lambda _: None)
    assert made.tags.keys() == {"v1", "later", "now"}
    files = made.head.files
    again()
    told = [line for line in lines if f"commits {first[:12]} and tags v1 hold it" in line]
    assert told[0].endswith("deletes the tags v1, later, and makes one commit of the history"), told
    assert len(made.commits) == 4, "without the option something was changed"
    for kind in ("squash", "unstore"):
        client.fail_next(kind, status=400)
        with pytest.raises(UserError, match="the hub refuses it"):
            again(rewrite_history=True)
        assert "now" in made.tags and clip["clip_id"] in "".join(holders_in(client))
    again(rewrite_history=True)
    assert [commit.title for commit in made.commits] == ["Earlier versions were removed on request"]
    assert made.tags == {"now": made.head.oid} and made.head.files == files
    assert clip["clip_id"] not in "".join(holders_in(client)), "the hub still has its bytes"
    records = [one for one in published(open_store(config.root)) if one.place.endswith("lab/sounds")]
    assert [one.commit for one in records] == [made.head.oid] * 2, "one of each version"
    again(rewrite_history=True)
    assert "hf://datasets/lab/sounds: no commit and no tag holds it" in lines
    publish(config.model_copy(update={"publish": other}), push="lab/sounds", say=lines.append)
    assert "nothing changed; it is there already" in lines[-1]


def holders_in(hub: Hub) -> list[str]:
    """Decoded rows of all Parquet files that a hub has."""
    return [str(pq.read_table(pa.BufferReader(data)).to_pylist()) for data in hub.objects.values()]


def test_places_that_cannot_be_looked_at_are_said(
    config: Config, clip: dict[str, Any], client: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(config, push="lab/sounds", say=lambda _: None)
    monkeypatch.setattr(forgetting, "HUB_TRIES", 1)
    lines: list[str] = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    forget(config, [clip["video_id"]], say=lines.append)
    assert [line for line in lines if line.startswith("hf://datasets/lab/sounds: could not be looked at (")]
    assert holders(Path(config.root), clip["clip_id"]) == [EXCLUSION]
