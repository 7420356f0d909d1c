"""Publication of captions and models: to a folder, or to the hub, weights first and the dataset last."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from pipelines.engine.fingerprint import digest
from pipelines.engine.storage import Storage
from pipelines.engine.store import open_store
from pipelines.errors import RunError, UserError
from pipelines.progress import human_bytes
from pipelines.publication.contents import Changes, Content, Head, refuse_leaks
from pipelines.publication.dataset_repo import next_edition
from pipelines.publication.hub_push import HubRepository, Moved
from pipelines.publication.model_repos import model_edition
from pipelines.publication.whole_folder import PublicationFolder
from pipelines.run_config import Config

What = Literal["captions", "captioner", "flowley"]
PARTS: tuple[What, ...] = ("captioner", "flowley", "captions")
"""In the order in which they are published: a dataset's card may speak of models that are there."""
RECORDS = "publications"
"""Folder of a store: a record for each place and what was published there last."""
TAG = re.compile(r"(?!main$|.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?<!\.lock)(?<!\.)")
NOTHING = Head({}, lambda name: b"")


@dataclass(frozen=True)
class Publication:
    """Publication as it is recorded in the store.

    Attributes:
        place: the folder, or the repository's address.
        stages: fingerprints of the outputs that it holds.
        commit, tag: of a repository; empty for a folder.
        rows: number of captions by configuration.
        words: what changed.
        sent_bytes: bytes of the files that were written or sent.
        finished_at_s: when.
    """

    what: What
    place: str
    stages: Mapping[str, str]
    commit: str = ""
    tag: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)
    words: str = ""
    sent_bytes: int = 0
    version: str = ""
    """The prompt version's name, as publish.version has it."""
    is_private: bool = False
    is_begun_only: bool = False
    """A push that did not come to its end: the place may hold it."""
    finished_at_s: float = field(default_factory=time.time)

    def __str__(self) -> str:
        if not self.sent_bytes:
            return f"{self.place}: nothing changed; it is there already" + self._version()
        return f"{self.place}: {self.words}, {human_bytes(self.sent_bytes)} sent" + self._version()

    def state(self, current: Mapping[str, str | None]) -> str:
        """Words on what is published, beside the `current` fingerprints of the stages."""
        if self.is_begun_only:
            return f"{self.what}: begun and not finished; the same command completes it"
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.finished_at_s))
        newer = [stage for stage, fingerprint in self.stages.items() if current.get(stage) != fingerprint]
        beside = f"; here {', '.join(newer)} is another" if newer else "; as here"
        named = f"{self.what} ({self.version})" if self.version else self.what
        return f"{named} of {when}{self._version()}{beside}"

    def _version(self) -> str:
        private = ", private" if self.is_private else ""
        return f" (commit {self.commit[:12]}, tag {self.tag}{private})" if self.commit else ""


@dataclass(frozen=True)
class _Prepared:
    """One part of a publication, ready to be sent."""

    what: What
    place: PublicationFolder | HubRepository
    head: Head | None
    wanted: Mapping[str, Content | None]
    tag: str
    stages: Mapping[str, str]
    rows: Mapping[str, int]
    words: str
    is_new_version: bool = False
    version: str = ""

    @property
    def changes(self) -> Changes:
        return Changes.between(self.head or NOTHING, self.wanted)

    def done(self, commit: str, sent_bytes: int) -> Publication:
        tag = self.tag if commit else ""
        is_private = isinstance(self.place, HubRepository) and bool(self.place.is_private)
        known = (self.what, self.place.name, self.stages, commit, tag, self.rows, self.words, sent_bytes)
        return Publication(*known, version=self.version, is_private=is_private)


def publish(
    config: Config,
    *,
    what: Sequence[What] = ("captions",),
    to: Path | None = None,
    push: str | None = None,
    private: bool = False,
    tag: str | None = None,
    dry_run: bool = False,
    note: str = "",
    say: Callable[[str], None] = print,
) -> list[Publication]:
    """Publishes committed captions and trained models to a folder or to the hub, and records it in the store.

    Args:
        what: parts to publish. Several have places of their own: subfolders, or repositories NAME-captioner,
            NAME-flowley and NAME.
        to, push: local folder, or repository owner/name; one of them.
        private: a repository that is made stays private.
        tag: of the version; None: the next number for captions, the output's fingerprint for a model.
        dry_run: says what would travel, and writes nothing.
        note: on a version of captions, for the card and the record.
        say: takes a line for each part, and for each wait.

    Raises:
        UserError: a stage is not done, the place holds something else, or the hub refuses it.
        RunError: the hub does not answer, or somebody else commits at the same time.
    """
    if (to is None) == (push is None):
        raise UserError("publish: give a folder with --to, or a repository with --push OWNER/NAME")
    if private and push is None:
        raise UserError("--private is for a repository of the hub, in --push")
    if tag is not None and not TAG.fullmatch(tag):
        raise UserError(f"--tag {tag!r}: wanted letters, digits, dots, dashes and underscores, like v2 or 2026-11")
    storage = open_store(config.root)
    places = [(part, place_of(part, what, to, push, config.root, say)) for part in PARTS if part in what]
    if push is not None and not dry_run:
        first = places[0][1]
        assert isinstance(first, HubRepository)
        first.require_login()
    with ExitStack() as stack:
        prepared = [_prepare(part, place, config, tag, note, stack) for part, place in places]
        found: list[Publication] = []
        for one in prepared:
            if dry_run:
                _say_dry(one, say)
                continue
            try:
                found.append(_send(one, storage, private=private, given_tag=tag))
            except (UserError, RunError) as error:
                before = "".join(f"; {done.place} is published" for done in found)
                raise type(error)(f"{error}{before}") from error
            say(str(found[-1]))
    return found


def published(storage: Storage) -> list[Publication]:
    """Publications that a store has recorded, newest last; of pushes that were only begun what may be there."""
    records = [record for record in map(storage.find_record, sorted(storage.names(RECORDS))) if record is not None]
    found = [Publication(**record) for record in records if "place" in record]
    begun = {tuple(record["begun"]) for record in records if "begun" in record}
    begun -= {(one.what, one.place) for one in found}
    found += [Publication(what, place, {}, is_begun_only=True) for what, place in sorted(begun)]
    return sorted(found, key=lambda one: one.finished_at_s)


def record_moved(storage: Storage, publication: Publication, commit: str) -> None:
    """Records that what a publication, of any version, sent to its place is another commit now."""
    for one in published(storage):
        if (one.what, one.place) == (publication.what, publication.place) and not one.is_begun_only:
            name = _record_name(one.what, one.place, one.version)
            storage.write_record(name, asdict(replace(one, commit=commit)))


def place_of(
    part: What, what: Sequence[What], to: Path | None, push: str | None, root: str, say: Callable[[str], None]
) -> PublicationFolder | HubRepository:
    """Place of one part of a publication; arguments as of `publish`. Raises UserError for a place that cannot be."""
    if to is not None:
        return PublicationFolder.of(to / part if len(what) > 1 else to, root)
    suffix = f"-{part}" if len(what) > 1 and part != "captions" else ""
    name = (push or "").removeprefix("hf://").removeprefix("datasets/").removeprefix("models/")
    return HubRepository(f"{name}{suffix}", "dataset" if part == "captions" else "model", say)


def _prepare(
    part: What, place: PublicationFolder | HubRepository, config: Config, tag: str | None, note: str, stack: ExitStack
) -> _Prepared:
    head = place.head()
    repository = place.repo_id if isinstance(place, HubRepository) else None
    try:
        if part == "captions":
            edition = next_edition(config, head or NOTHING, repository, tag, note)
            refuse_leaks(edition.wanted, config)
            words = ", ".join(f"{name} {change}" for name, change in edition.changes.items() if change)
            words = words or "the same captions with another card"
            known = (edition.wanted, edition.tag, edition.stages, edition.rows, words, edition.is_new_version)
            return _Prepared(part, place, head, *known, config.publish.version)
        model = stack.enter_context(model_edition(part, config, head or NOTHING, repository))
        used = tag or model.stages[part]
        return _Prepared(part, place, head, model.wanted, used, model.stages, {}, f"{part} {model.stages[part]}")
    except UserError as error:
        raise UserError(f"{place.name}: {error}") from error


def _say_dry(one: _Prepared, say: Callable[[str], None]) -> None:
    changes = one.changes
    what = f"{len(changes.add)} files, {human_bytes(changes.bytes)}, to send; {len(changes.remove)} to remove"
    made = "; the repository is made" if one.head is None else ""
    say(f"{one.place.name}: {what if changes else 'nothing to send'}{made} ({one.words})")


def _send(one: _Prepared, storage: Storage, *, private: bool, given_tag: str | None) -> Publication:
    if isinstance(one.place, PublicationFolder):
        changes = one.changes
        if changes:
            one.place.write(one.head or NOTHING, changes)
        return _recorded(one.done("", changes.bytes), storage)
    return _push(one, one.place, storage, private=private, given_tag=given_tag)


def _push(
    one: _Prepared, place: HubRepository, storage: Storage, *, private: bool, given_tag: str | None
) -> Publication:
    """Sends one part to its repository: one commit, its tag, and then, if we made it, the public may see it."""
    head, mark = one.head, _record_name(one.what, f"begun:{place.name}", "")
    if head is None:
        head, is_made = place.create()
        storage.write_record(mark, {"begun": [one.what, place.name], "made": is_made})
    is_ours = bool((storage.find_record(mark) or {}).get("made"))
    if private and not is_ours and not place.is_private:
        raise UserError(f"{place.name}: is public, and --private is for one that is made; change it on the hub")
    try:
        changes, commit = Changes.between(head, one.wanted), head.commit or ""
        if changes:
            storage.write_record(mark, {"begun": [one.what, place.name], "made": is_ours})
        there = place.tags()
        # A version whose card alone changes keeps its tag, where it is.
        asked = [one.tag] if one.is_new_version or one.tag not in there else []
        asked += [given_tag] if given_tag and given_tag not in asked else []
        for tag in asked:
            if tag in there and (changes or there[tag] != commit):
                raise UserError(f"{place.name}: the tag {tag} is there, of an earlier version; give another --tag")
        if changes:
            commit = _commit(one, place, head, changes)
        for tag in asked:
            place.tag(tag, commit)
        if is_ours and not private:
            place.open_to_all()
    except (UserError, RunError) as error:
        state = "; it was made, and is private until a publication is whole" if is_ours else ""
        raise type(error)(f"{error}{state}") from error
    done = _recorded(one.done(commit, changes.bytes), storage)
    if storage.exists(mark):
        storage.remove(mark)
    return done


def _commit(one: _Prepared, place: HubRepository, head: Head, changes: Changes) -> str:
    """Commits changes. A commit whose answer was lost counts."""
    try:
        return place.commit(changes, head.commit, f"{one.tag}: {one.words}")
    except Moved:
        now = place.head()
        if now is None or now.commit is None or Changes.between(now, one.wanted):
            raise
        return now.commit


def _recorded(done: Publication, storage: Storage) -> Publication:
    """The publication, recorded; one that changed nothing leaves the earlier record."""
    name = _record_name(done.what, done.place, done.version)
    earlier = storage.find_record(name)
    if done.sent_bytes or earlier is None or earlier.get("commit") != done.commit:
        storage.write_record(name, asdict(done))
    return done


def _record_name(what: str, place: str, version: str) -> str:
    return f"{RECORDS}/{what}-{digest([place, version])[:12]}.json"
