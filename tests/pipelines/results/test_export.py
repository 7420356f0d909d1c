"""Each export is read back by the rules of its target's own loader, and holds each caption once, on its clip."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from pipelines.cli import publication_commands
from pipelines.commands.extract import CAPTIONS, match_captions
from pipelines.engine.model_pins import Pin, write_pins
from pipelines.engine.runner import run_stages
from pipelines.engine.store import open_store
from pipelines.errors import UserError
from pipelines.publication import export as module
from pipelines.publication.export import Exported, ExportOptions, export
from pipelines.publication.export_formats import FORMATS, PANDAS_MISSING, Sample, write_tables
from pipelines.publication.published_rows import PUBLISHED_SCHEMA, clean_text, published_rows
from pipelines.publication.token_limits import TokenLimit, estimated_tokens, find_tokenizer
from pipelines.run_config import Config, ModelRef
from pipelines.stages.captions import CaptionsStage
from pipelines.stages.clips import ClipsStage
from pipelines.stages.curation import CurationStage
from pipelines.tables import read_table

LONG = " ".join(f"w{number % 10}" for number in range(90))
HOSTILE = [
    '=SUM(A1) says "hum",\tloud',
    "Ein Bär\nbrüllt, 熊が吼える 🐻",
    "'quoted', \"twice\" \r\n; pipe | here",
    LONG,
]
TABLES = [name for name, form in FORMATS.items() if form.tables]


@pytest.fixture(scope="module")
def hostile(
    configure: Callable[..., Config],
    caption: Callable[[Config, list[str]], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Config:
    config = configure(tmp_path_factory.mktemp("hostile"))
    caption(config, HOSTILE)
    run_stages([ClipsStage(), CaptionsStage(), CurationStage()], config, say=lambda _: None)
    return config


@pytest.fixture(scope="module")
def wanted(hostile: Config) -> dict[str, dict[str, Any]]:
    """Rows by the stem of their source, from what is published and the clips' own table."""
    [part], done = published_rows(hostile)
    stem_of = {row["clip_id"]: Path(row["source_name"]).stem for row in done["clips"].rows().to_pylist()}
    rows = {stem_of[row["clip_id"]]: row for row in part.rows.to_pylist()}
    assert {row["caption"] for row in rows.values()} == {clean_text(text) for text in HOSTILE}
    assert {row["split"] for row in rows.values()} == {"train", "test"}
    return rows


def write(config: Config, name: str, to: Path, **options: Any) -> tuple[Exported, list[str]]:
    """An export, and the lines that it said."""
    said: list[str] = []
    return export(config, name, to, ExportOptions(**options), say=said.append), said


def both(folder: Path, pattern: str, read: Callable[[Path], Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of a format's two files, with their splits."""
    for split in ("train", "test"):
        for record in read(folder / pattern.format(split)):
            yield split, record


def test_mmaudio(hostile: Config, wanted: dict[str, Any], tmp_path: Path) -> None:
    write(hostile, "mmaudio", tmp_path / "out")
    read = lambda path: pd.read_csv(path, sep="\t", dtype={"id": str}).to_dict("records")  # noqa: E731
    found = {row["id"]: (split, row["label"]) for split, row in both(tmp_path / "out", "vgg3-{}.tsv", read)}
    assert found == {stem: (row["split"], row["caption"]) for stem, row in wanted.items()}
    assert all((Path(hostile.source.folder) / f"{stem}.mp4").is_file() for stem in found)


@pytest.mark.parametrize("reader", ["pandas", "csv"])
def test_thinksound(hostile: Config, wanted: dict[str, Any], tmp_path: Path, reader: str) -> None:
    write(hostile, "thinksound", tmp_path)

    def read(path: Path) -> list[dict[str, str]]:
        if reader == "pandas":
            return pd.read_csv(path, sep=",", dtype={"id": str}).to_dict("records")
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    found = {r["id"]: (split, r["caption"], r["caption_cot"]) for split, r in both(tmp_path, "{}.csv", read)}
    assert found == {stem: (row["split"], row["label"], row["caption"]) for stem, row in wanted.items()}


@pytest.mark.parametrize("root", ["", "/data/films/"])
def test_hunyuan(hostile: Config, wanted: dict[str, Any], tmp_path: Path, root: str) -> None:
    write(hostile, "hunyuan", tmp_path, media_root=root)
    read = lambda path: list(pd.read_csv(path).iterrows())  # noqa: E731
    rows = list(both(tmp_path, "{}.csv", read))
    assert all(row["index"] == index for _, (index, row) in rows)
    found = {row["video"]: (split, row["prompt"]) for split, (_, row) in rows}
    assert found == {f"{root}{stem}.mp4": (row["split"], row["caption"]) for stem, row in wanted.items()}
    assert root or all((Path(hostile.source.folder) / video).is_file() for video in found)


def test_paths_of_clips_lie_below_the_store(hostile: Config, tmp_path: Path) -> None:
    write(hostile, "hunyuan", tmp_path, names="clip", media_root=hostile.root)
    videos = [row["video"] for path in tmp_path.glob("*.csv") for row in pd.read_csv(path).to_dict("records")]
    assert len(videos) == len(HOSTILE) and all(Path(video).is_file() for video in videos)


def test_av_benchmark(hostile: Config, wanted: dict[str, Any], tmp_path: Path) -> None:
    write(hostile, "av-benchmark", tmp_path)
    read = lambda path: pd.read_csv(path).to_dict(orient="records")  # noqa: E731
    found = {str(row["name"]): row["caption"] for _, row in both(tmp_path, "{}.csv", read)}
    assert found == {stem: row["caption"] for stem, row in wanted.items()}


def test_flowley_reads_its_captions(hostile: Config, wanted: dict[str, Any], tmp_path: Path) -> None:
    write(hostile, "flowley", tmp_path)
    videos = [path.name for path in Path(hostile.source.folder).glob("*.mp4")]
    found: dict[str, str] = {}
    for split in ("train", "test"):
        said: list[str] = []
        found |= match_captions(read_table(str(tmp_path / f"captions-{split}.csv"), CAPTIONS), videos, said.append)
        assert not said, "every caption is of a video"
    assert found == {stem: row["caption"] for stem, row in wanted.items()}


def test_flowley_as_released(hostile: Config, wanted: dict[str, Any], tmp_path: Path) -> None:
    write(hostile, "flowley", tmp_path)
    data = pd.read_csv(tmp_path / "flowley.tsv", sep="\t")
    for split in ("train", "test"):
        of_split = data[data["split"] == split].reset_index(drop=True).to_dict("records")
        found = {row["video_path"]: (row["text_description"], row["label"]) for row in of_split}
        rows = {stem: row for stem, row in wanted.items() if row["split"] == split}
        assert found == {f"{stem}.mp4": (row["caption"], row["label"]) for stem, row in rows.items()}


def test_jsonl_has_the_published_columns(hostile: Config, wanted: dict[str, Any], tmp_path: Path) -> None:
    write(hostile, "jsonl", tmp_path)
    read = lambda path: map(json.loads, path.read_text(encoding="utf-8").splitlines())  # noqa: E731
    found = {row.pop("file"): row for _, row in both(tmp_path, "{}.jsonl", read)}
    assert found == {f"{stem}.mp4": row for stem, row in wanted.items()}
    assert all(row.keys() == set(PUBLISHED_SCHEMA.names) for row in found.values())


def shards(folder: Path) -> list[dict[str, Any]]:
    paths = [str(path) for path in sorted(folder.glob("*.tar"))]
    return list(webdataset.WebDataset(paths, shardshuffle=False))


def test_webdataset_without_media(hostile: Config, wanted: dict[str, Any], tmp_path: Path) -> None:
    write(hostile, "webdataset", tmp_path)
    samples = shards(tmp_path)
    found = {sample["__key__"]: json.loads(sample["json"]) for sample in samples}
    assert found == {row["clip_id"]: row for row in wanted.values()}
    assert {kind for sample in samples for kind in sample if not kind.startswith("__")} == {"json"}
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["test-000000.tar", "train-000000.tar"]


def test_webdataset_with_media_holds_the_clips(hostile: Config, tmp_path: Path) -> None:
    write(hostile, "webdataset", tmp_path / "a", with_media=True)
    samples = shards(tmp_path / "a")
    clips = {row["clip_id"]: row for row in published_rows(hostile)[1]["clips"].rows().to_pylist()}
    assert sorted(sample["__key__"] for sample in samples) == sorted(clips)
    for sample in samples:
        clip = clips[sample["__key__"]]
        for suffix, kind in (("mp4", "video"), ("flac", "audio")):
            assert hashlib.sha256(sample[suffix]).hexdigest() == clip[f"{kind}_sha256"]
    write(hostile, "webdataset", tmp_path / "b", with_media=True)
    for path in (tmp_path / "a").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), "the same export has the same bytes"


def test_shards_keep_to_their_limits(hostile: Config, tmp_path: Path) -> None:
    write(hostile, "webdataset", tmp_path / "samples", shard_samples=2)
    names = ["test-000000.tar", "train-000000.tar", "train-000001.tar"]
    assert sorted(path.name for path in (tmp_path / "samples").glob("*.tar")) == names
    write(hostile, "webdataset", tmp_path / "bytes", with_media=True, shard_gb=1e-9)
    assert len(list((tmp_path / "bytes").glob("*.tar"))) == len(HOSTILE), "a sample that is too large has its own shard"
    sizes = [path.stat().st_size for path in (tmp_path / "bytes").glob("train-*.tar")]
    two = max(sizes) * 2 / 1e9
    write(hostile, "webdataset", tmp_path / "two", with_media=True, shard_gb=two)
    train = sorted((tmp_path / "two").glob("train-*.tar"))
    assert len(train) == 2 and all(path.stat().st_size <= two * 1e9 for path in train)
    assert len(shards(tmp_path / "two")) == len(HOSTILE)


def test_a_clip_that_is_gone_is_told(
    configure: Callable[..., Config], caption: Callable[[Config, list[str]], None], tmp_path: Path
) -> None:
    config = configure(tmp_path / "store")
    caption(config, HOSTILE)
    run_stages([ClipsStage(), CaptionsStage(), CurationStage()], config, say=lambda _: None)
    next(Path(config.root, "media").rglob("*.mp4")).unlink()
    with pytest.raises(UserError, match=r"\.mp4 is gone; `soundcap run` makes it again, then export again"):
        write(config, "webdataset", tmp_path / "out", with_media=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("on_long", ["warn", "cut", "drop"])
@pytest.mark.parametrize("name", ["mmaudio", "thinksound", "hunyuan", "av-benchmark"])
def test_long_captions(hostile: Config, tmp_path: Path, name: str, on_long: str) -> None:
    exported, said = write(hostile, name, tmp_path, on_long=on_long)
    assert exported.long == 1 and "1 captions are longer than the 77 tokens" in said[0]
    texts = " ".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*.?sv")).replace("\n", " ")
    assert exported.rows.total() == (3 if on_long == "drop" else 4)
    assert (LONG in texts) == (on_long == "warn")
    kept = LONG.split()[: int((77 - 2) / 1.4)]
    assert (" ".join(kept) in texts) == (on_long != "drop")
    assert on_long != "cut" or " ".join(LONG.split()[: len(kept) + 1]) not in texts


def clip_tokenizer(folder: Path, size: int = 49_408) -> Path:
    """Checkpoint folder with a tokenizer of CLIP's size, in which a word is a token and marks start and end texts."""
    words = ["<|startoftext|>", "<|endoftext|>", "?", *(f"w{number}" for number in range(10))]
    vocabulary = {word: number for number, word in enumerate([*words, *(f"x{n}" for n in range(size - len(words)))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing("<|startoftext|> $A <|endoftext|>", special_tokens=[
        (word, vocabulary[word]) for word in words[:2]
    ])  # fmt: skip
    tokenizer.enable_truncation(77)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "clip"}')
    return folder


def test_the_targets_own_tokenizer_counts(
    configure: Callable[..., Config], hostile: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clip_tokenizer(tmp_path / "clip")
    config = hostile.model_copy(
        update={"features": hostile.features.model_copy(update={"text": ModelRef(path=str(folder))})}
    )
    _, said = write(config, "mmaudio", tmp_path / "out", on_long="cut")
    assert "the 77 tokens that CLIP reads: cut" in said[0]
    text = (tmp_path / "out/vgg3-train.tsv").read_text() + (tmp_path / "out/vgg3-test.tsv").read_text()
    assert " ".join(LONG.split()[:75]) in text and " ".join(LONG.split()[:76]) not in text
    _, said = write(config, "thinksound", tmp_path / "t5")
    assert "T5 reads, at 1.4 tokens a word" in said[0], "CLIP's tokenizer does not count for T5"
    storage = open_store(hostile.root)
    toy = ModelRef(path=str(clip_tokenizer(tmp_path / "toy", size=1000)))
    assert find_tokenizer(toy, storage, "CLIP") is None, "another vocabulary does not count"
    assert find_tokenizer(toy, storage) is not None
    assert find_tokenizer(ModelRef(path="nobody/has-this", revision="ab" * 20), storage) is None
    assert find_tokenizer(ModelRef(path="/no/such/folder"), storage) is None


def test_counts_are_those_of_transformers(hostile: Config) -> None:
    from transformers import AutoTokenizer

    tokenizer = find_tokenizer(hostile.features.text, open_store(hostile.root))
    reference = AutoTokenizer.from_pretrained(hostile.features.text.path)
    texts = [*HOSTILE, "", "a dog barks"]
    assert TokenLimit(77, "CLIP", tokenizer).counts(texts) == [len(ids) for ids in reference(texts).input_ids]


def test_a_mirror_in_the_store_has_the_tokenizer(hostile: Config, tmp_path: Path) -> None:
    storage, commit = open_store(str(tmp_path / "store"), write=True), "ab" * 20
    write_pins(storage, {f"some/clip@{commit}": Pin(commit, "apache-2.0", "clip", "")})
    for file in clip_tokenizer(tmp_path / "clip").iterdir():
        storage.write_bytes(f"models/some/clip/{commit}/{file.name}", file.read_bytes())
    assert find_tokenizer(ModelRef(path="some/clip", revision=commit), storage, "CLIP") is not None
    main = ModelRef(path="some/clip", revision="main")
    assert find_tokenizer(main, storage, "CLIP") is None
    write_pins(storage, {"some/clip@main": Pin(commit, "apache-2.0", "clip", None)})
    assert find_tokenizer(main, storage, "CLIP") is not None, "a branch stands for the commit that the store has"


@given(st.text(min_size=1).map(clean_text).filter(bool), st.integers(4, 40))
def test_a_cut_is_a_beginning_within_the_limit(text: str, tokens: int) -> None:
    limit = TokenLimit(tokens, "CLIP")
    cut = limit.cut(text)
    assert cut and text.startswith(cut)
    assert limit.counts([cut])[0] <= tokens or len(cut) == 1
    rest = text[len(cut) :]
    assert " " not in text[: len(cut) + 1] or not rest or not rest.lstrip(" ,;:-") or rest[0] in " ,;:-", "at a word"


def test_the_estimate_grows_with_words_letters_and_scripts() -> None:
    assert estimated_tokens("a dog barks") == 3 * 2 + 1  # ceil(4.2) and two marks
    assert estimated_tokens("a" * 400) >= 100
    assert estimated_tokens("熊が") == 6 + 2 + 2


@pytest.mark.parametrize("name", TABLES)
@given(captions=st.lists(st.text(min_size=1).map(clean_text), min_size=1, max_size=5))
def test_any_caption_survives(name: str, captions: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    form, folder = FORMATS[name], tmp_path_factory.mktemp("any")
    made = [Sample("train", n, f"v{n}", f"v{n}.mp4", f"v{n}.mp4", "dog", c, {}, {}) for n, c in enumerate(captions)]
    samples = [sample for sample in made if not form.takes_for_missing(sample)] + [
        Sample("train", 99, "last", "last.mp4", "last.mp4", "dog", "so that a column has text", {}, {})
    ]
    write_tables(folder, form.tables, samples)
    for table in form.tables:
        column = next(header for header, field in table.columns.items() if field == "caption")
        path = folder / table.file.format(split="train")
        if table.takes_missing:
            found = pd.read_csv(path, sep=table.delimiter)[column].tolist()
        else:
            found = list(read_table(str(path), CAPTIONS).columns["caption"])
        assert found == [sample.caption for sample in samples]


def test_pandas_missing_texts_are_its_own() -> None:
    from pandas._libs.parsers import STR_NA_VALUES

    assert PANDAS_MISSING == STR_NA_VALUES


def test_files_of_several_splits_are_whole(tmp_path: Path) -> None:
    rows = [(split, n) for split in ("train", "test") for n in range(3_000)]
    samples = [Sample(s, n, f"{s}{n}", f"{s}{n}.mp4", f"{s}{n}.mp4", "dog", f"a {s} {n}", {}, {}) for s, n in rows]
    write_tables(tmp_path, FORMATS["flowley"].tables, samples)
    data = pd.read_csv(tmp_path / "flowley.tsv", sep="\t")
    assert data["text_description"].tolist() == [f"a {split} {n}" for split, n in rows]


def test_what_a_target_takes_for_missing_is_left_out_and_counted(
    configure: Callable[..., Config], caption: Callable[[Config, list[str]], None], tmp_path: Path,
    only_min_words: Callable[[int], str],
) -> None:  # fmt: skip
    config = configure(tmp_path / "store", only_min_words(1))
    caption(config, ["None", "NA", "a dog barks", "rain falls"])
    run_stages([ClipsStage(), CaptionsStage(), CurationStage()], config, say=lambda _: None)
    exported, said = write(config, "mmaudio", tmp_path / "mm")
    assert (exported.missing, exported.rows.total()) == (2, 2)
    assert "2 rows are left out: mmaudio takes a text like 'None' or 'NA' for a missing one" in said
    exported, _ = write(config, "jsonl", tmp_path / "js")
    assert (exported.missing, exported.rows.total()) == (0, 4)


def test_silent_captions(finished: Config, hostile: Config, tmp_path: Path) -> None:
    exported, _ = write(finished, "jsonl", tmp_path, source="silent_captions")
    rows = [json.loads(line) for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert exported.rows.total() == len(rows) == 4 and {row["source"] for row in rows} == {"silent_captions"}
    with pytest.raises(UserError, match="nothing to export: silent_captions is not done; `soundcap run CONFIG --until"):
        write(hostile, "jsonl", tmp_path, source="silent_captions")


def test_only_kept_captions_are_exported(finished: Config, tmp_path: Path) -> None:
    write(finished, "mmaudio", tmp_path)
    text = "".join(path.read_text() for path in tmp_path.glob("*.tsv"))
    assert "Thud." not in text, "curation dropped it"


def test_an_export_replaces_an_earlier_one_of_its_format(hostile: Config, tmp_path: Path) -> None:
    write(hostile, "webdataset", tmp_path, shard_samples=1)
    write(hostile, "webdataset", tmp_path)
    names = ["publication.json", "test-000000.tar", "train-000000.tar"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names, "earlier shards stayed"
    with pytest.raises(UserError, match="holds a publication of 'export webdataset', wanted one of 'export jsonl'"):
        write(hostile, "jsonl", tmp_path)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"--to .*holds thesis\.tex that no earlier publication wrote"):
        write(hostile, "webdataset", tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_export_that_fails_leaves_the_earlier_one(
    hostile: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(hostile, "mmaudio", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(module, "PUBLICATION", "no/such/folder.json")
    with pytest.raises(OSError):
        write(hostile, "mmaudio", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nothing_of_this_machine_is_in_an_export(hostile: Config, tmp_path: Path) -> None:
    for name in FORMATS:
        write(hostile, name, tmp_path / name, with_media=name == "webdataset")
    private = [str(Path(hostile.root)), str(hostile.source.folder), str(Path.home()), str(tmp_path)]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert not [one for one in private if one.encode() in path.read_bytes()], path


def test_bad_input_is_one_line(hostile: Config, tmp_path: Path) -> None:
    cases: list[tuple[str, Path, dict[str, Any], str]] = [
        ("mmaudo", tmp_path / "a", {}, "--format mmaudo: unknown; did you mean mmaudio"),
        ("jsonl", Path("s3://bucket/x"), {}, "only local folders are written"),
        ("mmaudio", tmp_path / "a", {"media_root": "/x"}, "mmaudio has no paths of videos, hunyuan, flowley, jsonl"),
        ("jsonl", tmp_path / "a", {"with_media": True}, "--with-media: jsonl holds captions alone"),
        ("jsonl", tmp_path / "a", {"on_long": "cut"}, "--on-long cut: jsonl has no token limit"),
        ("hunyuan", tmp_path / "a", {"media_root": "a\nb"}, "--media-root: has control characters"),
    ]
    for name, to, options, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            write(hostile, name, to, **options)
        assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        write(hostile, "jsonl", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "a refused export leaves nothing"


def test_nothing_to_export(
    configure: Callable[..., Config], hostile: Config, only_min_words: Callable[[int], str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="nothing to publish: stage captions is"):
        write(configure(tmp_path / "empty"), "jsonl", tmp_path / "out")
    config = configure(Path(hostile.root), only_min_words(1_000))
    run_stages([ClipsStage(), CaptionsStage(), CurationStage()], config, say=lambda _: None)
    with pytest.raises(UserError, match="nothing to publish: curation kept no caption"):
        write(config, "jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "form", "words"),
    [
        (["a/x.mp4", "b/x.mp4", "y.mp4", "z.mp4"], "mmaudio", "two videos are called 'x', which mmaudio cannot tell"),
        (["1.mp4", "02.mp4", "3.mp4", "4.mp4"], "av-benchmark", "'02' as 2; give --names clip"),
        (["1.mp4", "2e3.mp4", "3.mp4", "4.mp4"], "av-benchmark", "'2e3' as 2000; give"),
        (["a\nb.mp4", "2.mp4", "3.mp4", "4.mp4"], "hunyuan", "has control characters, which a table cannot hold"),
        (["a.mp4", "2.mkv", "3.MP4", "4.mp4"], "mmaudio", ""),
        (["1.mp4", "2.mp4", "3.mp4", "0.mp4"], "av-benchmark", ""),
        (["01.mp4", "2.mp4", "3.mp4", "dog.mp4"], "av-benchmark", ""),
    ],
)
def test_names_that_a_target_misreads(
    hostile: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], form: str, words: str
) -> None:
    from pipelines.engine.store import Output

    rows = Output.rows

    def renamed(self: Output, *columns: str) -> Any:
        table = rows(self, *columns)
        if self.stage == "clips" and "source_name" in columns:
            place = table.column_names.index("source_name")
            table = table.set_column(place, "source_name", [names])
        return table

    monkeypatch.setattr(Output, "rows", renamed)
    if words:
        with pytest.raises(UserError, match=words):
            write(hostile, form, tmp_path / "out")
        return
    _, said = write(hostile, form, tmp_path / "out")
    table = next((tmp_path / "out").glob("*train*"))
    frame = pd.read_csv(table, sep="\t" if form == "mmaudio" else ",")
    assert set(frame.iloc[:, 0].astype(str)) <= {Path(name).stem for name in names}
    assert (f"{form} opens {{id}}.mp4 alone, and 1 of 4 videos are of another kind; give --names clip" in said) == (
        form == "mmaudio"
    )


def test_the_command(hostile: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from pipelines.cli.soundcap import app

    monkeypatch.setattr(publication_commands, "load_config", lambda path, overrides: hostile)
    arguments = ["export", "a.yaml", "--format", "thinksound", "--to", str(tmp_path / "out"), "--on-long", "drop"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "1 captions are longer than the 77 tokens that T5 reads, at 1.4 tokens a word: left out" in done.output
    assert "captions for ThinkSound, in test.csv, train.csv" in done.output
    assert CliRunner().invoke(app, [*arguments, "--on-long", "shrink"]).exit_code == 2
