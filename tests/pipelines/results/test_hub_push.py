"""Publications on the Hub: the real client against a server that speaks its API; round trips, faults, leaks."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow.parquet as pq
import pytest

from flowley.network.feature_spec import FeatureSpec
from flowley.network.flowley import Flowley
from flowley.network.presets import preset
from pipelines.engine.runner import run_stages
from pipelines.engine.store import open_store
from pipelines.errors import RunError, UserError
from pipelines.publication import hub_push
from pipelines.publication.publish import RECORDS, publish, published
from pipelines.run_config import Config
from pipelines.stages.captioner import CaptionerStage
from pipelines.stages.flowley import FlowleyStage
from tests.hub_server import READER, STRANGER, WRITER, Blob, Hub, Repository

ROOT = Path(__file__).parents[3]
SOUNDS = ("dataset", "lab/sounds")
LOAD = """
import datasets, json, sys
found = {}
for name, revision in json.loads(sys.argv[1]):
    loaded = datasets.load_dataset("lab/sounds", name, revision=revision)
    found[f"{name}@{revision}"] = {split: len(rows) for split, rows in loaded.items()}
found["default"] = [row for rows in datasets.load_dataset("lab/sounds").values() for row in rows]
print(json.dumps(found))
"""


@pytest.fixture
def client(hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub, without repositories, as that of this process's client."""
    hub = hub_server
    hub.forget()
    for name, value in {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return hub


@pytest.fixture
def config(finished: Config, tmp_path: Path) -> Config:
    """A finished store of its own, which is published."""
    shutil.copytree(finished.root, tmp_path / "store", ignore=shutil.ignore_patterns(RECORDS))
    return finished.model_copy(update={"root": str(tmp_path / "store")})


@pytest.fixture
def push(client: Hub) -> Callable[..., list[str]]:
    """Pushes captions to lab/sounds; returns what was said."""

    def run(config: Config, **options: Any) -> list[str]:
        lines: list[str] = []
        publish(config, **{"push": "lab/sounds", "say": lines.append} | options)
        return lines

    return run


def _keeping(config: Config, min_words: int) -> Config:
    """The configuration with another least number of words, curated."""
    rules = config.curation.rules.__class__(**{**_plain(config.curation.rules), "min_words": min_words})
    changed = config.model_copy(update={"curation": config.curation.model_copy(update={"rules": rules})})
    from pipelines.stages.captions import CaptionsStage
    from pipelines.stages.clips import ClipsStage
    from pipelines.stages.curation import CurationStage

    run_stages([ClipsStage(), CaptionsStage(), CurationStage()], changed, say=lambda _: None)
    return changed


def _plain(rules: Any) -> dict[str, Any]:
    return {name: getattr(rules, name) for name in rules.__slots__}


def test_a_dataset_goes_round(client: Hub, push: Callable[..., list[str]], config: Config, tmp_path: Path) -> None:
    """First version, nothing new, a version with fewer rows; both versions load from the server."""
    [said] = push(config, dry_run=True)
    assert "to send; 0 to remove; the repository is made" in said and not client.repositories
    [said] = push(config)
    first = client.repositories[SOUNDS]
    assert not first.is_private and [commit.title for commit in first.commits][1:] == [
        "v1: captions +3 ~0 -0, silent_captions +4 ~0 -0"
    ]
    assert first.tags == {"v1": first.head.oid} and f"(commit {first.head.oid[:12]}, tag v1)" in said
    sent = client.bytes_of("upload", "commit")

    client.requests.clear()
    [said] = push(config)
    assert "nothing changed; it is there already" in said
    assert not {"create", "commit", "upload", "tag", "settings"} & {kind for kind, _ in client.requests}

    client.requests.clear()
    fewer = _keeping(config, 7)
    [said] = push(fewer)
    assert "captions +0 ~0 -2" in said and first.tags["v2"] == first.head.oid
    assert client.bytes_of("upload") < sent / 2, "files without a changed row travelled"
    assert "| v2 |" in first.head.files["README.md"].data.decode()
    [record] = published(open_store(config.root))
    assert (record.commit, record.tag, record.place) == (first.head.oid, "v2", "hf://datasets/lab/sounds")
    assert record.state({}).startswith("captions of ") and WRITER not in json.dumps(record.__dict__, default=str)

    asked = json.dumps([["captions", "v1"], ["captions", "main"], ["silent_captions", "v2"]])
    loaded = _call([sys.executable, "-c", LOAD, asked], client, tmp_path)
    counts = {name: sum(splits.values()) for name, splits in loaded.items() if name != "default"}
    assert counts == {"captions@v1": 3, "captions@main": 1, "silent_captions@v2": 4}
    assert all(row["source"] == "captions" for row in loaded["default"]), "the default is another configuration"
    program = _example(client, "lab/sounds", "dataset") + "\nimport json; print(json.dumps(captions.num_rows))"
    assert sum(_call([sys.executable, "-c", program], client, tmp_path).values()) == 1


def _call(command: list[str], hub: Hub, home: Path) -> Any:
    """JSON that a process of the real client prints."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **hub.environment(str(home))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["plain", "other-1"])
def test_versions_beside_the_default_keep_their_files(
    client: Hub, push: Callable[..., list[str]], config: Config, name: str
) -> None:
    push(config)
    before = client.repositories[SOUNDS].head.files
    push(config.model_copy(update={"publish": config.publish.model_copy(update={"version": name})}))
    after = client.repositories[SOUNDS].head.files
    assert {path for path in before if path.startswith("data/")} < after.keys()
    card = after["README.md"].data.decode()
    assert f"config_name: captions-{name}" in card and card.count("default: true") == 1
    record = json.loads(after["publication.json"].data)
    assert sorted(record["configurations"]) == [
        "captions",
        f"captions-{name}",
        "silent_captions",
        f"silent_captions-{name}",
    ]


def test_models_go_round(client: Hub, config: Config, tiny_vl: Path, tmp_path: Path) -> None:
    """The adapter on its base, and the network, load from the server with what their cards say."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(tiny_vl)
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    network = Flowley(preset("tiny"))
    network.features = FeatureSpec(visual=str(tmp_path / "clip"), text="some/clip", text_revision="ab" * 20,
                                   codec="log_mel", duration_s=4.0)  # fmt: skip
    network.save_pretrained(tmp_path / "network")
    given = config.model_copy(
        update={
            "captioner": config.captioner.model_copy(update={"adapter": str(tmp_path / "adapter")}),
            "flowley": config.flowley.model_copy(update={"checkpoint": str(tmp_path / "network"), "overrides": {}}),
        }
    )
    run_stages([CaptionerStage(), FlowleyStage()], given, say=lambda _: None)
    with pytest.raises(UserError, match=r"features.visual.path: .*clip is a folder of this machine.*publish.hub_ids"):
        publish(given, what=["flowley"], push="lab/sounds", say=lambda _: None)
    assert not client.repositories
    ids = {"features.visual": "some/clip@v1"}
    named = given.model_copy(update={"publish": given.publish.model_copy(update={"hub_ids": ids})})
    for what in ("captioner", "flowley"):
        publish(named, what=[what], push=f"lab/{what}", say=lambda _: None)  # type: ignore[list-item]
    files = client.repositories["model", "lab/captioner"].head.files
    settings = json.loads(files["adapter_config.json"].data)
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("some/vl", "cd" * 20)
    assert str(tmp_path) not in "".join(blob.data.decode(errors="replace") for blob in files.values())
    features = json.loads(client.repositories["model", "lab/flowley"].head.files["config.json"].data)["features"]
    assert (features["visual"], features["visual_revision"]) == ("some/clip", "v1")

    lines = {what: _example(client, f"lab/{what}") for what in ("captioner", "flowley")}
    assert 'from_pretrained("some/vl", revision="' in lines["captioner"]
    program = "\n".join(
        [
            re.sub(r'from_pretrained\("some/vl".*?\)', f"from_pretrained({str(tiny_vl)!r})", lines["captioner"]),
            "import json; lora = [p for n, p in model.named_parameters() if 'lora_B' in n]",
            "sums = [float(sum(p.abs().sum() for p in lora))]",
            lines["flowley"],
            "sums.append(float(sum(p.double().abs().sum() for p in model.parameters())))",
            "print(json.dumps(sums))",
        ]
    )
    wanted = [
        float(sum(p.abs().sum() for n, p in adapted.named_parameters() if "lora_B" in n)),
        float(sum(p.double().abs().sum() for p in network.parameters())),
    ]
    assert _call([sys.executable, "-c", program], client, tmp_path) == pytest.approx(wanted)


def _example(hub: Hub, name: str, kind: str = "model") -> str:
    """Code that a card shows."""
    card = hub.repositories[kind, name].head.files["README.md"].data.decode()
    return card.split("```python\n")[1].split("```")[0]


def test_xet_is_left_on() -> None:
    program = "import pipelines.cli.soundcap, huggingface_hub.constants as c; print(c.HF_HUB_DISABLE_XET)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("token", "repository", "message"),
    [
        ("", "lab/sounds", "no token of the hub: set HF_TOKEN"),
        ("hf_wrong0000000000000000", "lab/sounds", "the hub does not know this token"),
        (READER, "lab/sounds", "the hub's token may read only"),
        (STRANGER, "lab/sounds", "hf://datasets/lab/sounds: this token may not write there"),
        (WRITER, "lab/", "--push lab/"),
        (WRITER, "lab/so unds", "--push lab/so unds"),
        (WRITER, "sounds", "--push sounds: wanted OWNER/NAME"),
        (WRITER, "lab/..", "--push lab/.."),
    ],
)
def test_refusals_are_one_line_and_make_nothing(
    client: Hub, config: Config, monkeypatch: pytest.MonkeyPatch, token: str, repository: str, message: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nowhere")
    monkeypatch.setattr(huggingface_hub.constants, "HF_STORED_TOKENS_PATH", "/nowhere")
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        publish(config, push=repository, say=lambda _: None)
    assert "\n" not in str(caught.value) and not client.repositories


def test_a_repository_of_something_else_is_left_alone(
    client: Hub, push: Callable[..., list[str]], config: Config
) -> None:
    made = client.repositories[SOUNDS] = Repository(is_private=False)
    made.commit("theirs", {"train.csv": Blob(b"a,b", is_lfs=False)})
    with pytest.raises(UserError, match=r"hf://datasets/lab/sounds: holds train.csv that no earlier publication wrote"):
        push(config)
    made.commit(
        "a model", {"publication.json": Blob(b'{"what": "flowley", "files": ["publication.json"]}', is_lfs=False)}
    )
    with pytest.raises(UserError, match=r"holds a publication of 'flowley', wanted one of 'captions'"):
        push(config)
    assert len(made.commits) == 2
    push(config, push="lab/other", private=True)
    assert client.repositories["dataset", "lab/other"].is_private


@pytest.mark.parametrize(
    ("kind", "status"), [("create", 429), ("create", 503), ("commit", 429), ("commit", 500), ("tag", 502)]
)
def test_a_busy_hub_is_waited_for(
    client: Hub, push: Callable[..., list[str]], config: Config, kind: str, status: int
) -> None:
    client.fail_next(kind, status=status, times=2, Retry_After="0")
    lines = push(config)
    assert f"hf://datasets/lab/sounds: the hub answers {status}; trying again in 0 s" in lines
    made = client.repositories[SOUNDS]
    assert len(made.commits) == 2 and made.tags == {"v1": made.head.oid} and not made.is_private


def test_a_hub_that_stays_busy_ends_the_push_and_the_next_completes_it(
    client: Hub, push: Callable[..., list[str]], config: Config
) -> None:
    client.fail_next("commit", status=503, times=hub_push.TRIES, Retry_After="0")
    with pytest.raises(RunError, match=r"answers 503; run the same command again; it was made, and is private until"):
        push(config)
    made = client.repositories[SOUNDS]
    assert made.is_private and len(made.commits) == 1
    [said] = [line for line in push(config) if "sent" in line]
    assert len(made.commits) == 2 and not made.is_private and "tag v1" in said
    assert not list((Path(config.root) / RECORDS).glob("*made*")) and len(published(open_store(config.root))) == 1


@pytest.mark.parametrize("kind", ["commit", "tag"])
def test_a_lost_answer_is_no_second_version(
    client: Hub, push: Callable[..., list[str]], config: Config, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_push, "_wait_s", lambda *_: 0.0)
    client.fail_next(kind, after=True)
    push(config)
    made = client.repositories[SOUNDS]
    assert [commit.title for commit in made.commits][1:] == ["v1: captions +3 ~0 -0, silent_captions +4 ~0 -0"]
    assert made.tags == {"v1": made.head.oid}


def test_a_commit_of_somebody_else_is_not_overwritten(
    client: Hub, push: Callable[..., list[str]], config: Config
) -> None:
    push(config)
    made = client.repositories[SOUNDS]
    client.fail_next("commit", status=412)
    with pytest.raises(RunError, match="somebody else committed to it under way"):
        push(_keeping(config, 7))
    assert len(made.commits) == 2 and made.tags == {"v1": made.head.oid}


def test_a_tag_of_another_version_is_refused_before_anything_is_sent(
    client: Hub, push: Callable[..., list[str]], config: Config
) -> None:
    push(config, tag="paper")
    made = client.repositories[SOUNDS]
    assert made.tags == {"paper": made.head.oid}
    with pytest.raises(UserError, match="the tag paper is there, of an earlier version; give another --tag"):
        push(_keeping(config, 7), tag="paper")
    assert len(made.commits) == 2
    for tag in ("a b", "", "-x", "a..", "x.lock", "ü"):
        with pytest.raises(UserError, match="--tag .*: wanted letters"):
            push(config, tag=tag)


def test_a_card_alone_is_no_version(client: Hub, push: Callable[..., list[str]], config: Config) -> None:
    push(config)
    made = client.repositories[SOUNDS]
    first = made.head.oid
    named = config.model_copy(update={"publish": config.publish.model_copy(update={"author": "A. Lab"})})
    [said] = push(named)
    assert "the same captions with another card" in said and made.tags == {"v1": first} and len(made.commits) == 3
    assert "nothing changed" in push(named)[0] and len(made.commits) == 3
    push(named, tag="cited")
    assert made.tags == {"v1": first, "cited": made.head.oid}


@pytest.mark.parametrize("kind", ["path", "token", "variable"])
def test_what_must_not_leave_is_found_before_it_is_sent(
    client: Hub, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    secret = {"path": f"{config.root}/notes", "token": "hf_" + "a1B2" * 8, "variable": "correct-horse-battery"}[kind]
    monkeypatch.setenv("WANDB_API_KEY", "correct-horse-battery")
    author = config.publish.model_copy(update={"author": f"A. Lab, {secret}"})
    with pytest.raises(UserError, match=r"CITATION.cff would publish .*nothing was sent"):
        publish(config.model_copy(update={"publish": author}), push="lab/sounds", say=lambda _: None)
    assert not client.repositories and not client.sent


def test_nothing_of_this_machine_is_sent(client: Hub, push: Callable[..., list[str]], config: Config) -> None:
    import base64
    import socket

    push(config)
    texts = [blob.data for commit in client.repositories[SOUNDS].commits for blob in commit.files.values()]
    sent = b"\n".join([*texts, *client.sent, *(base64.b64encode(text) for text in texts)])
    for private in (config.root, config.source.folder, str(Path.home()), WRITER, socket.gethostname() + "/"):
        assert private.encode() not in sent, f"{private} was sent"


def test_excluded_labels_and_videos_do_not_leave(
    client: Hub, push: Callable[..., list[str]], config: Config, tmp_path: Path
) -> None:
    def rows() -> list[dict[str, Any]]:
        files = client.repositories[SOUNDS].head.files
        tables = [pq.read_table(io.BytesIO(blob.data)) for path, blob in files.items() if path.endswith(".parquet")]
        return [row for table in tables for row in table.to_pylist()]

    push(config)
    everything = rows()
    video, label = (
        everything[0]["video_id"],
        next(r["label"] for r in everything if r["label"] != everything[0]["label"]),
    )
    (tmp_path / "ids.txt").write_text(f"{video}\n\nunknown\n")
    exclude = config.publish.exclude.model_copy(
        update={"labels": (label.upper(),), "videos": str(tmp_path / "ids.txt")}
    )
    excluding = config.model_copy(update={"publish": config.publish.model_copy(update={"exclude": exclude})})
    push(excluding)
    wanted = [row for row in everything if row["video_id"] != video and row["label"] != label]
    assert sorted(map(str, rows())) == sorted(map(str, wanted)) and len(wanted) < len(everything)
    by_licence = exclude.model_copy(update={"licences": ("cc-by",)})
    with pytest.raises(UserError, match="source.table: .*vggsound.csv has no column licence"):
        push(config.model_copy(update={"publish": config.publish.model_copy(update={"exclude": by_licence})}))
    missing = exclude.model_copy(update={"videos": str(tmp_path / "none.txt")})
    with pytest.raises(UserError, match="publish.exclude.videos: .*none.txt: No such file"):
        push(config.model_copy(update={"publish": config.publish.model_copy(update={"exclude": missing})}))


def test_a_private_repository_is_never_opened_by_a_failed_attempt(
    client: Hub, push: Callable[..., list[str]], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that may not see it takes it for one that is to be made."""
    [said] = push(config, private=True)
    made = client.repositories[SOUNDS]
    assert made.is_private and "private" in said
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    with pytest.raises(UserError, match="may not write there"):
        push(config)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    push(config)
    push(_keeping(config, 7))
    assert made.is_private
    made.is_private = False
    with pytest.raises(UserError, match="is public, and --private is for one that is made"):
        push(config, private=True)


def test_an_answer_to_create_that_is_lost_leaves_it_private(
    client: Hub, push: Callable[..., list[str]], config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_push, "_wait_s", lambda *_: 0.0)
    client.fail_next("create", after=True)
    said = push(config)[-1]
    made = client.repositories[SOUNDS]
    assert made.is_private and ", private)" in said and len(made.commits) == 2


def test_a_version_beside_leaves_the_default_as_it_is(
    client: Hub, push: Callable[..., list[str]], config: Config
) -> None:
    push(config)
    push(config.model_copy(update={"publish": config.publish.model_copy(update={"version": "b"})}))
    card = client.repositories[SOUNDS].head.files["README.md"].data
    [said] = push(config)
    assert "nothing changed" in said and client.repositories[SOUNDS].head.files["README.md"].data == card
    assert sorted(one.version for one in published(open_store(config.root))) == ["", "b"]


def test_a_push_that_was_begun_is_remembered(client: Hub, push: Callable[..., list[str]], config: Config) -> None:
    client.fail_next("tag", status=403, times=9)
    with pytest.raises(UserError):
        push(config)
    [begun] = published(open_store(config.root))
    assert begun.is_begun_only and begun.place == "hf://datasets/lab/sounds" and "not finished" in begun.state({})
    client.faults.clear()
    push(config)
    [done] = published(open_store(config.root))
    assert not done.is_begun_only and done.tag == "v1"


def test_what_is_kept_back_leaves_other_versions_too(
    client: Hub, push: Callable[..., list[str]], config: Config, tmp_path: Path
) -> None:
    beside = config.model_copy(update={"publish": config.publish.model_copy(update={"version": "b"})})
    push(config)
    push(beside)
    files = client.repositories[SOUNDS].head.files
    video = _videos(files)[0]
    (tmp_path / "ids.txt").write_bytes(b"\xef\xbb\xbf" + video.encode() + b"\r\n")
    exclude = config.publish.exclude.model_copy(update={"videos": str(tmp_path / "ids.txt")})
    push(config.model_copy(update={"publish": config.publish.model_copy(update={"exclude": exclude})}))
    left = _videos(client.repositories[SOUNDS].head.files)
    assert left and video not in left
    misspelt = exclude.model_copy(update={"labels": ("bal bounceing",)})
    with pytest.raises(UserError, match="publish.exclude.labels: 'bal bounceing' is no label of the clips"):
        push(config.model_copy(update={"publish": config.publish.model_copy(update={"exclude": misspelt})}))


def _videos(files: Mapping[str, Blob]) -> list[str]:
    """Video ids of the rows of a repository."""
    tables = [pq.read_table(io.BytesIO(blob.data)) for path, blob in files.items() if path.endswith(".parquet")]
    return [video for table in tables for video in table["video_id"].to_pylist()]
