"""Forgetting of videos on their owners' request: in the store for good, and at the places of its publications."""

from __future__ import annotations

import difflib
import io
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.engine.erase import Erased, Layout, erase
from pipelines.engine.exclusion import DONE, EXCLUSION, Exclusion, Forgotten, read_exclusion, write_exclusion
from pipelines.engine.fingerprint import digest
from pipelines.engine.lease import lease
from pipelines.engine.node_cache import copies_folder, drop_copies
from pipelines.engine.storage import Storage
from pipelines.engine.store import committed_outputs, open_store
from pipelines.errors import RunError, UserError, one_line
from pipelines.progress import human_bytes
from pipelines.publication.contents import Head, Identity
from pipelines.publication.hub_push import HubRepository
from pipelines.publication.publish import RECORDS, Publication, published, record_moved
from pipelines.publication.whole_folder import PublicationFolder
from pipelines.report.build import REPORT
from pipelines.run_config import Config
from pipelines.stages import STAGES
from pipelines.stages.clips import MEDIA_FOLDER, ClipsStage
from pipelines.stages.features import PARTS_FOLDER
from pipelines.stages.listing import SourceListing
from pipelines.stages.samples import SAMPLES_FOLDER
from pipelines.stages.source import list_source
from pipelines.stages.source_changes import SEEN

MODELS = frozenset(stage.name for stage in STAGES if stage.is_model)
LAYOUT = Layout((MEDIA_FOLDER, PARTS_FOLDER, SAMPLES_FOLDER), (REPORT.partition("/")[0],), MODELS, SEEN)
HUB_TRIES = 2
"""Tries of a question to the hub: what it does not answer is said."""
Say = Callable[[str], None]


def forget(config: Config, video_ids: Sequence[str], *, rewrite_history: bool = False, say: Say = print) -> None:
    """Removes videos from the store for good and keeps them out; the same call goes on after a kill.

    Publications stay as they are, but for `rewrite_history`: it removes what of a repository's history holds the
    videos, once its current state does not. What holds them, and what is to be done, is said.

    Raises:
        UserError: nobody has such a video, the root holds no store or is in use, or a publication must come first.
        RunError: a file of the store is damaged.
    """
    storage = open_store(config.root)
    if storage.is_empty():
        raise UserError(f"root {config.root!r} holds no store; is it the right one?")
    with lease(storage, say) as held:
        before = read_exclusion(storage)
        exclusion = _look_up(config, storage, dict.fromkeys(video_ids), before, say)
        held.check()
        write_exclusion(storage, exclusion)
        todo = Exclusion({video: exclusion.videos[video] for video in video_ids if video in exclusion.unfinished})
        if todo:
            erased = erase(storage, todo.traces, LAYOUT)
            _record(storage, todo, erased)
            done = {video: replace(one, is_done=True) for video, one in todo.videos.items()}
            write_exclusion(storage, Exclusion({**exclusion.videos, **done}))
    for video in dict.fromkeys(video_ids):
        already = "" if video in todo.videos else f" already, since {exclusion.videos[video].since}"
        say(f"{video}: forgotten{already}; {storage.address(EXCLUSION)} keeps it out")
    if todo:
        _say_erased(erased, storage, say)
        _forget_here(config, erased, say)
    _tell_of_publications(storage, exclusion, rewrite_history=rewrite_history, say=say)


# --- what is known of a video ---------------------------------------------------------------------------------


def _look_up(config: Config, storage: Storage, video_ids: Mapping[str, None], before: Exclusion, say: Say) -> Exclusion:
    """Exclusion with these videos, by all committed outputs of `clips` and by the source.

    Raises UserError that names an unknown id.
    """
    seen = _seen(storage)
    source, problem = _listed(config)
    found = dict(before.videos)
    for video in video_ids:
        of_id, of_source = _of(seen, video), _of(source, video)["name"].to_pylist()
        names = {*of_id["name"].to_pylist(), *of_source}
        sha256 = {*of_id["sha256"].to_pylist(), *_hashed(config, of_source, say)}
        if not names and video not in before.videos:
            known = {*seen["video_id"].to_pylist(), *source["video_id"].to_pylist()}
            close = difflib.get_close_matches(video, sorted(known), n=1)
            remedy = f"did you mean {close[0]}?" if close else "`video_id` of a publication has them"
            raise UserError(f"{video}: no output of this store and no source file has this video id; {remedy}{problem}")
        same = seen.filter(pc.is_in(seen["sha256"], value_set=pa.array(sorted(sha256), pa.string())))
        made = {*same["clip"].to_pylist(), *ClipsStage().identity(config).clip_ids(sorted(sha256))}
        now = Forgotten(sorted({*names, *same["name"].to_pylist()}), sorted(sha256), sorted(made))
        found[video] = before.videos[video].with_more(now) if video in before.videos else now
    if problem:
        say(problem.removeprefix("; "))
    return Exclusion(found)


def _seen(storage: Storage) -> pa.Table:
    """Videos that any output of `clips` saw, also of those that an earlier forgetting took away."""
    columns = ("name", "sha256", "video_id", "clip")
    tables = [pa.schema([(name, pa.string()) for name in columns]).empty_table()]
    for name in sorted(one for one in storage.names(ClipsStage.name) if one.endswith(f"/{SEEN}")):
        try:
            tables.append(storage.read_table(name).select(columns))
        except (pa.ArrowException, KeyError) as error:
            remedy = f"remove the folder {name.rpartition('/')[0]}, and `soundcap run CONFIG` makes it again"
            raise RunError(f"{storage.address(name)}: cannot be read; {remedy}") from error
    return pa.concat_tables(tables)


def _of(table: pa.Table, video: str) -> pa.Table:
    return table.filter(pc.equal(table["video_id"], video))


def _listed(config: Config) -> tuple[pa.Table, str]:
    """Names and video ids of the source's files; or none, and why the source cannot be looked at."""
    try:
        return list_source(config).files.select(["name", "video_id"]), ""
    except (UserError, OSError) as error:
        nothing = pa.array([], pa.string())
        return pa.table({"name": nothing, "video_id": nothing}), f"; the source was not looked at: {one_line(error)}"


def _hashed(config: Config, names: Sequence[str], say: Say) -> set[str]:
    """SHA-256 of files of the source, as they are now."""
    folder, found = Storage(config.source.folder), set[str]()
    for name in names:
        try:
            found.add(folder.sha256(name))
        except OSError as error:
            say(f"{name}: cannot be read, so copies of it under other names are not known ({one_line(error)})")
    return found


# --- what was done --------------------------------------------------------------------------------------------


def _record(storage: Storage, wanted: Exclusion, erased: Erased) -> None:
    """Records that it was done, and no name of what."""
    when = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
    counts = {"videos": len(wanted.videos), "clips": len(wanted.clips), "removed": erased.counts()}
    storage.write_record(f"{DONE}/{when}.json", {"when": when, **counts})


def _say_erased(erased: Erased, storage: Storage, say: Say) -> None:
    rows, files, size = (sum(one.values()) for one in (erased.rows, erased.files, erased.bytes))
    say(f"removed: {rows} rows of ledgers, {files} files, {human_bytes(size)}; recorded in {storage.address(DONE)}")
    if erased.stages:
        say(f"`soundcap run` assembles {', '.join(sorted(erased.stages))} again, and makes what else is missing")
    models = [f"{stage}/{one.fingerprint}" for stage in sorted(MODELS) for one in committed_outputs(storage, stage)]
    if models:
        say(f"models stay, and may have learned from it: {', '.join(models)}; the next run trains on what is left")


def _forget_here(config: Config, erased: Erased, say: Say) -> None:
    """Removes what this machine remembers beside the store, and says where other machines may."""
    memory = SourceListing(config.source.folder, rescan=True).memory
    shutil.rmtree(memory, ignore_errors=True)
    drop_copies(erased.names)
    say(
        "not touched: the source itself, folders that `soundcap export` or `compare --page` wrote, the hub client's "
        f"cache, and on other machines {memory} (names of large sources) and {copies_folder()} (features from a bucket)"
    )


# --- publications ---------------------------------------------------------------------------------------------


def _tell_of_publications(storage: Storage, exclusion: Exclusion, *, rewrite_history: bool, say: Say) -> None:
    """Says which publications still hold forgotten videos, and rewrites their history if that is wished."""
    for one in {(found.what, found.place): found for found in published(storage)}.values():
        if one.what != "captions":
            say(f"{one.place}: a model, which may have learned from it; it stays until another is published")
            continue
        try:
            if one.place.startswith("hf://"):
                _tell_of_repository(one, storage, exclusion, rewrite_history=rewrite_history, say=say)
            else:
                _tell_of_folder(one.place, exclusion, say)
        except (UserError, RunError, OSError) as error:
            if rewrite_history:
                raise
            say(f"{one.place}: could not be looked at ({one_line(error)}); run the same command again")


def _tell_of_folder(place: str, exclusion: Exclusion, say: Say) -> None:
    if not Path(place).is_dir():
        say(f"{place}: is not there")
        return
    rows = sum(_Holds(exclusion).rows(PublicationFolder(Path(place)).head()).values())
    say(f"{place}: " + (f"holds {rows} rows; the next `soundcap publish` to it removes them" if rows else "has none"))


@dataclass
class _Holds:
    """Search for forgotten videos in the Parquet files of publications; each content is read once."""

    exclusion: Exclusion
    known: dict[Identity, int] = field(default_factory=dict)
    contents: set[str] = field(default_factory=set)
    """SHA-256 of the files that hold a row."""

    def rows(self, head: Head) -> dict[str, int]:
        """Rows of forgotten videos, by the file that holds them."""
        files = {path: one for path, one in head.files.items() if path.endswith(".parquet")}
        for path, one in files.items():
            if one not in self.known:
                table = pq.read_table(io.BytesIO(head.read(path)), columns=["video_id", "clip_id"])
                self.known[one] = pc.sum(self.exclusion.has(table)).as_py() or 0
                if self.known[one] and one.sha256:
                    self.contents.add(one.sha256)
        return {path: self.known[one] for path, one in files.items() if self.known[one]}


def _tell_of_repository(
    one: Publication, storage: Storage, exclusion: Exclusion, *, rewrite_history: bool, say: Say
) -> None:
    """Says which commits and tags of a repository hold the videos; with `rewrite_history` removes them.

    A tag goes too if a commit before it holds them, for its history would stay.
    """
    place = HubRepository(one.place.removeprefix("hf://datasets/"), "dataset", say, HUB_TRIES)
    head = place.head()
    if head is None or head.commit is None:
        say(f"{one.place}: is not there, or this token may not see it")
        return
    holds = _Holds(exclusion)
    found = _History.of(place, head, lambda commit: bool(holds.rows(place.head_at(commit))))
    if now := sum(holds.rows(head).values()):
        words = f"its current state holds {now} rows: `soundcap run`, then `soundcap publish` to it, removes them"
        if rewrite_history:
            raise UserError(f"{one.place}: {words}; then its history can be rewritten. No tag was deleted")
        say(f"{one.place}: {words}")
    for branch in found.branches:
        say(f"{one.place}: the branch {branch} holds it too, and no publication made that; delete it on the hub")
    if rewrite_history:
        _rewrite(one, place, found, holds.contents, storage)
    gone = f"deletes the tags {_few([*found.tags, *found.later])}"
    if not found.commits and not found.tags:
        say(f"{one.place}: no commit and no tag holds it")
    elif rewrite_history:
        say(f"{one.place}: {found} held it; its history is one commit now. This {gone}".replace("deletes", "deleted"))
    else:
        say(f"{one.place}: {found} hold it; `--rewrite-history` {gone}, and makes one commit of the history")


@dataclass(frozen=True)
class _History:
    """Parts of a repository's history that hold forgotten videos.

    Attributes:
        commits: of the main branch.
        tags: whose state holds them.
        later: other tags, with such a state before them, but for those of the current state.
        current: such tags of the current state.
        branches: other branches whose state holds them.
    """

    commits: Sequence[str]
    tags: Sequence[str]
    later: Sequence[str]
    current: Sequence[str]
    branches: Sequence[str]

    @classmethod
    def of(cls, place: HubRepository, head: Head, holds: Callable[[str], bool]) -> _History:
        """History of a repository; `holds` tells whether a commit does."""
        holding = cache(holds)
        tags = place.tags()
        after = [tag for tag in tags if any(map(holding, place.history(tag)))]
        current = [tag for tag in after if place.head_at(tags[tag]).files == head.files]
        now = [tag for tag in after if holding(tags[tag])]
        return cls(
            [commit for commit in place.history() if holding(commit)],
            now,
            [tag for tag in after if tag not in {*now, *current}],
            current,
            [branch for branch, commit in place.branches().items() if holding(commit)],
        )

    def __str__(self) -> str:
        return f"commits {_few([commit[:12] for commit in self.commits])} and tags {_few(self.tags)}"


def _rewrite(one: Publication, place: HubRepository, found: _History, contents: set[str], storage: Storage) -> None:
    """Removes what holds forgotten videos from a repository whose current state does not; goes on after a kill."""
    place.require_login()
    mark = (
        f"{RECORDS}/rewriting-{digest(one.place)[:12]}.json"  # the files are not found again once the commits are gone
    )
    pending = contents | set((storage.find_record(mark) or {"files": []})["files"])
    if not pending and not found.commits and not found.tags:
        return
    storage.write_record(mark, {"files": sorted(pending)})
    if found.commits or found.tags or found.later:
        record_moved(storage, one, place.squash([*found.tags, *found.later], found.current))
    place.delete_contents(pending)
    storage.remove(mark)


def _few(names: Sequence[str], most: int = 10) -> str:
    """Names for people."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"
