"""Hub models: commits that a store keeps, files that a node fetches once, mirrors, and what a hub refuses."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml

from pipelines.commands.models import fetch_models, model_states
from pipelines.config_file import load_config
from pipelines.engine import model_files
from pipelines.engine.fsck import fsck, repair
from pipelines.engine.model_files import local_folder, mirror_of
from pipelines.engine.model_pins import PINS, ask_new, pinned, read_pins, write_pins
from pipelines.engine.storage import Storage
from pipelines.engine.store import Output, latest
from pipelines.errors import UserError
from pipelines.run_config import Config
from pipelines.stages import STAGES
from tests.hub_server import Hub, Repository

ROOT = Path(__file__).parents[2]
FIRST, SECOND = "1" * 40, "2" * 40
CARD = "---\nlicense: apache-2.0\n---\n# A model\n"


@pytest.fixture
def hub(hub_server: Hub, tiny_omni: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Repository of the hub's model tiny/omni, of two commits, and this process on a node without its files."""
    hub_server.forget()
    made = hub_server.repositories["model", "tiny/omni"] = Repository(main=FIRST)
    for commit in (FIRST, SECOND):
        folder = tmp_path / commit
        shutil.copytree(tiny_omni, folder)
        for name, text in (("README.md", f"{CARD}{commit}"), ("pytorch_model.bin", "other"), ("logo.png", "picture")):
            (folder / name).write_text(text)
        made.add_folder(commit, folder)
    (tmp_path / "node").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    for name, value in _environment(hub_server.url, tmp_path).items():
        monkeypatch.setenv(name, value)
    _use(hub_server.url, tmp_path / "node", monkeypatch)
    return made


def _environment(url: str, folder: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(folder / "node" / "hf"),
        "TMPDIR": str(folder / "node"),
        "RAY_TMPDIR": "/tmp",
    }


def _use(url: str, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points this process's client of the hub at a server, and at the node's cache."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(node / "hf" / "hub"))


def _cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Makes this process one of another node, which does not reach the hub."""
    node = tmp_path / "other-node"
    node.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(node))
    _use("http://127.0.0.1:9", node, monkeypatch)


def _config(tmp_path: Path, *overrides: str, model: str = "tiny/omni", revision: str = "main") -> Config:
    return load_config(ROOT / "configs" / "demo.yaml", _settings(tmp_path, model, revision, *overrides))


def _settings(tmp_path: Path, model: str, revision: str, *overrides: str) -> list[str]:
    named = json.dumps({"path": model, "revision": revision})
    return [f"root={tmp_path}/store", f"source.folder={tmp_path}/films", f"captions.model={named}", *overrides]


@pytest.fixture
def no_lines() -> list[str]:
    return []


@pytest.mark.parametrize("key", ["captioner.model", "features.text", "features.visual", "agreement.model"])
def test_a_model_of_the_wrong_type_is_told_before_a_run(
    hub: Repository, hub_server: Hub, tiny_omni: Path, tmp_path: Path, key: str
) -> None:
    """Of a folder, and of the hub, of which nothing is downloaded."""
    told = f"{key}: .* is a 'qwen2_5_omni' checkpoint, wanted one of type "
    for path, revision in ((str(tiny_omni), "null"), ("tiny/omni", "main")):
        model = f"{key}={{path: {path}, revision: {revision}}}"
        config = _config(tmp_path, model, model=str(tiny_omni), revision="")
        storage = Storage(config.root)
        config = pinned(config, ask_new(config, storage)[0])
        write_pins(storage, ask_new(config, storage)[0])
        stage = next(one for one in STAGES if one.name == key.partition(".")[0])
        with pytest.raises(UserError, match=told):
            stage.recipe(config, storage)
    assert not [name for name in hub_server.downloads if not name.endswith("config.json")]


def test_a_store_keeps_the_commit_that_it_learned(hub: Repository, tmp_path: Path, no_lines: list[str]) -> None:
    config = _config(tmp_path)
    storage = Storage(config.root)
    pins, fault = ask_new(config, storage)
    assert [(name, pin.commit, pin.licence) for name, pin in pins.items()] == [("tiny/omni@main", FIRST, "apache-2.0")]
    assert fault == "" and storage.is_empty(), "asking has written something"

    fetch_models(config, None, update=False, say=no_lines.append)
    hub.main = SECOND
    assert ask_new(config, storage) == ({}, ""), "a recorded commit was asked for again"
    [state] = [one for one in model_states(config, storage, {}) if one.revision]
    assert (state.commit, state.licence, state.is_mirrored) == (FIRST, "apache-2.0", True)
    assert state.known_by.startswith("recorded 20") and FIRST[:12] in state.words()

    [fetched] = fetch_models(config, None, update=True, say=no_lines.append)
    assert fetched.commit == SECOND == read_pins(storage)["tiny/omni@main"].commit


def test_only_what_a_model_needs_is_mirrored_and_nothing_twice(
    hub: Repository,
    hub_server: Hub,
    tiny_omni: Path,
    tmp_path: Path,
    no_lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = _config(tmp_path)
    [first] = fetch_models(config, None, update=False, say=no_lines.append)
    wanted = {file.name: file.stat().st_size for file in tiny_omni.iterdir()}
    wanted["README.md"] = len(CARD) + 40
    storage = Storage(config.root)
    folder = Path(storage.path(mirror_of("tiny/omni", FIRST)))
    there = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != model_files.FILES}
    assert there == wanted and first.bytes == first.new_bytes == sum(wanted.values())
    assert sorted(hub_server.downloads) == sorted(f"tiny/omni/{FIRST}/{name}" for name in wanted)
    assert any("GiB, from the hub to" in line for line in no_lines)

    [again] = fetch_models(config, None, update=False, say=no_lines.append)
    assert (again.bytes, again.new_bytes) == (first.bytes, 0) and len(hub_server.downloads) == len(wanted)
    _cut_off(monkeypatch, tmp_path)
    assert local_folder(storage, "tiny/omni", FIRST) == str(folder), "a mirror on a disk was copied"


def test_nodes_without_the_hub_read_the_mirror_in_a_bucket_once(
    hub: Repository, s3_url: str, tiny_omni: Path, tmp_path: Path, no_lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig

    root = f"{s3_url}/{tmp_path.name}"
    fetch_models(_config(tmp_path), root, update=False, say=no_lines.append)
    assert not (tmp_path / "store").exists() and len(no_lines) == 2
    storage = Storage(root)
    assert read_pins(storage)["tiny/omni@main"].commit == FIRST
    _cut_off(monkeypatch, tmp_path)
    folders = [local_folder(storage, "tiny/omni", FIRST, say=no_lines.append) for _ in range(2)]
    assert folders[0] == folders[1] and len(no_lines) == 3 and f"to {tempfile.gettempdir()}" in no_lines[2]
    for file in tiny_omni.iterdir():
        assert (Path(folders[0]) / file.name).read_bytes() == file.read_bytes(), file.name
    assert AutoConfig.from_pretrained(folders[0]).model_type == "qwen2_5_omni"
    model_files._held.close()


def test_processes_of_a_node_fetch_a_model_once(hub: Repository, hub_server: Hub, tmp_path: Path) -> None:
    script = (
        "from pipelines.engine.model_files import local_folder\n"
        "from pipelines.engine.storage import Storage\n"
        f"print(local_folder(Storage({str(tmp_path / 'store')!r}), 'tiny/omni', {FIRST!r}), flush=True)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({lines[-1] for lines in said}) == 1 and Path(said[0][-1]).is_dir()
    assert len(hub_server.downloads) == len(set(hub_server.downloads)) > 5, "files were fetched twice"
    assert sum("from the hub to" in " ".join(lines) for lines in said) == 1


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        ("tiny/none", "main", "the hub has no such model, or none that you may see"),
        ("tiny/omni", "f" * 40, "the hub has no revision"),
        ("tiny/om ni", "main", "no such checkpoint folder 'tiny/om ni'; give a folder or a hub id"),
        ("tiny/omni", "v9", "the hub has no revision 'v9' of it"),
        ("tiny/gated", "main", "the hub gives it to those alone who accepted its terms"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    hub: Repository, hub_server: Hub, tmp_path: Path, no_lines: list[str], model: str, revision: str, message: str
) -> None:
    hub_server.repositories["model", "tiny/gated"] = Repository(is_gated=True)
    config = _config(tmp_path, model=model, revision=revision)
    with pytest.raises(UserError, match=message) as error:
        fetch_models(config, None, update=False, say=no_lines.append)
    assert "captions.model" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "store").exists()


def test_a_model_of_a_damaged_mirror_is_not_loaded(hub: Repository, tmp_path: Path, no_lines: list[str]) -> None:
    """Zeros amid its weights leave the size as it is: captions would be other ones, in silence."""
    config = _config(tmp_path)
    fetch_models(config, None, update=False, say=no_lines.append)
    storage, name = Storage(config.root), f"{mirror_of('tiny/omni', FIRST)}/model.safetensors"
    assert local_folder(storage, "tiny/omni", FIRST) == storage.path(mirror_of("tiny/omni", FIRST))
    whole = storage.read_bytes(name)
    storage.write_bytes(name, whole[:-2000] + bytes(1000) + whole[-1000:])
    with pytest.raises(UserError, match=r"not what was written \(model.safetensors\); `soundcap fsck CONFIG --repair`"):
        local_folder(storage, "tiny/omni", FIRST)
    storage.remove(name)
    with pytest.raises(UserError, match="a file of this model is gone"):
        local_folder(storage, "tiny/omni", FIRST)


def test_a_damaged_record_of_commits_moves_no_branch(hub: Repository, tmp_path: Path, no_lines: list[str]) -> None:
    config = _config(tmp_path)
    fetch_models(config, None, update=False, say=no_lines.append)
    storage = Storage(config.root)
    hub.main = SECOND
    storage.write_bytes(PINS, storage.read_bytes(PINS)[:100])
    with pytest.raises(UserError, match=r"pins.json: not what was written.*fsck CONFIG --repair"):
        ask_new(config, storage)
    [finding] = list(fsck(storage))
    assert finding.name == PINS
    repair(storage, [finding])
    assert ask_new(config, storage)[0]["tiny/omni@main"].commit == SECOND
    storage.remove(PINS)
    with pytest.raises(
        UserError, match=r"pins.json: is gone, but the store has files of hub models, such as models/tiny"
    ):
        ask_new(config, storage)


def test_one_model_that_the_hub_refuses_leaves_the_others(hub: Repository, tmp_path: Path) -> None:
    config = _config(tmp_path, "captioner.model={path: tiny/omni, revision: main}", revision="f" * 40)
    pins, fault = ask_new(config, Storage(config.root))
    assert (
        list(pins) == ["tiny/omni@main"]
        and fault == f"captions.model: tiny/omni: the hub has no revision {'f' * 40!r} of it"
    )


def test_a_damaged_mirror_is_found_and_fetched_again(hub: Repository, tmp_path: Path, no_lines: list[str]) -> None:
    config = _config(tmp_path)
    fetch_models(config, None, update=False, say=no_lines.append)
    storage = Storage(config.root)
    assert list(fsck(storage)) == []
    name = f"{mirror_of('tiny/omni', FIRST)}/config.json"
    whole = storage.read_bytes(name)
    storage.write_bytes(name, whole.replace(b"q", b"p", 1))
    [finding] = list(fsck(storage))
    assert finding.name == name and "fetch-models" in finding.cost
    repair(storage, [finding])
    fetch_models(config, None, update=False, say=no_lines.append)
    assert storage.read_bytes(name) == whole and list(fsck(storage)) == []


@pytest.mark.timeout(600)
def test_a_run_pins_a_branch_and_a_plan_follows(hub: Repository, hub_server: Hub, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    tones = ["-f", "lavfi", "-i", "testsrc=size=96x96:rate=24:duration=4", "-f", "lavfi", "-i", "sine=duration=4"]
    subprocess.run(["ffmpeg", "-v", "error", *tones, str(tmp_path / "films" / "a.mp4")], check=True)
    settings = _settings(tmp_path, "tiny/omni", "main", "source.table=null", "captions.sampling.max_new_tokens=4")
    dead = {"HF_ENDPOINT": "http://127.0.0.1:9"}

    plan = _soundcap("plan", settings, dead)
    assert "unresolved: captions.model.revision: got 'main' of tiny/omni" in plan["stages"][1]["reason"]
    refused = _call("run", [*settings], dead)
    assert refused.returncode == 2 and "the hub does not answer, and this machine has no copy" in refused.stderr
    assert not (tmp_path / "store").exists()

    plan = _soundcap("plan", settings)
    [model] = [one for one in plan["models"] if one["revision"]]
    assert (model["commit"], model["known_by"], model["licence"]) == (FIRST, "the hub", "apache-2.0")
    assert not (tmp_path / "store").exists(), "a plan has written something"

    run = _call("run", settings, {}, "--until", "captions")
    assert run.returncode == 0, run.stderr
    assert f"tiny/omni@main: {FIRST}, which this store keeps; licence apache-2.0" in run.stderr + run.stdout
    storage = Storage(str(tmp_path / "store"))
    output = Output(storage, "captions", str(latest(storage, "captions")))
    assert output.spec()["meaning"]["model"] == f"tiny/omni@{FIRST}"
    assert output.committed().figures["licence"] == "apache-2.0"
    weights = [name for name in hub_server.downloads if name.endswith((".safetensors", ".bin", ".png"))]
    assert weights == [f"tiny/omni/{FIRST}/model.safetensors"], "not once, or more than was needed"

    hub.main = SECOND
    assert _soundcap("plan", settings)["stages"][1]["state"] == "done", "the hub's branch moved the store"
    assert _call("fetch-models", settings, {}, "--update").returncode == 0
    reason = _soundcap("plan", settings)["stages"][1]["reason"]
    assert reason == f"captions.model: tiny/omni@{FIRST[:11]}... -> tiny/omni@{SECOND[:11]}..."
    assert storage.exists(PINS)


def _call(command: str, settings: list[str], environment: dict[str, str], *more: str) -> Any:
    named = [part for setting in settings for part in ("--set", setting)]
    arguments = [sys.executable, "-m", "pipelines.cli.soundcap", command, "configs/demo.yaml", *named, *more]
    return subprocess.run(
        arguments, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


def _soundcap(command: str, settings: list[str], environment: dict[str, str] | None = None) -> Any:
    done = _call(command, settings, environment or {}, "--json")
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)
