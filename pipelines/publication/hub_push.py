"""Repository on a data hub as the place of a publication: one commit, its tag, and what the hub may refuse."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from pipelines.errors import RunError, UserError, one_line
from pipelines.publication.contents import Changes, Head, Identity
from pipelines.scratch import scratch

RepoType = Literal["dataset", "model"]
TRIES, LONGEST_WAIT_S = 6, 120.0
Answer = TypeVar("Answer")


class Moved(RunError):
    """Repository that somebody else committed to since its head was read."""


@dataclass
class HubRepository:
    """Repository of a hub, through its own client.

    Args:
        repo_id: owner/name.
        kind: of repository.
        say: takes a line about each wait.
        tries: of each call while the hub is busy or does not answer.
    """

    repo_id: str
    kind: RepoType
    say: Callable[[str], None]
    tries: int = TRIES
    is_private: bool | None = field(default=None, init=False)
    """As the hub said when its head was read."""
    _api: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils._validators import validate_repo_id

        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise UserError(f"--push {self.repo_id}: {one_line(error)}") from error
        if self.repo_id.count("/") != 1:
            raise UserError(f"--push {self.repo_id}: wanted OWNER/NAME")
        self._api = HfApi()

    @property
    def name(self) -> str:
        """Address, for people."""
        return f"hf://{self.kind}s/{self.repo_id}"

    def require_login(self) -> None:
        """Raises UserError without a token, or with one that the hub does not know or that may not write."""
        from huggingface_hub import get_token

        if get_token() is None:
            raise UserError("no token of the hub: set HF_TOKEN, or run `hf auth login`")
        found = self._ask(self._api.whoami)
        role = found.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise UserError("the hub's token may read only: make one that may write, and set HF_TOKEN to it")

    def head(self) -> Head | None:
        """State of the repository's newest commit; None if there is no such repository."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            info = self._ask(lambda: self._api.repo_info(self.repo_id, repo_type=self.kind), RepositoryNotFoundError)
        except RepositoryNotFoundError:
            return None
        self.is_private = bool(info.private)
        return self.head_at(info.sha)

    def head_at(self, commit: str) -> Head:
        """State at a commit."""
        tree = self._ask(
            lambda: list(self._api.list_repo_tree(self.repo_id, recursive=True, revision=commit, repo_type=self.kind))
        )
        files = {
            entry.path: Identity(entry.size, entry.lfs.sha256)
            if entry.lfs
            else Identity(entry.size, git_sha1=entry.blob_id)
            for entry in tree
            if hasattr(entry, "blob_id")
        }
        return Head(files, lambda path: self._read(path, commit), commit)

    def _read(self, path: str, commit: str) -> bytes:
        from huggingface_hub import hf_hub_download

        with scratch("hub") as folder:  # not the client's cache, which would keep rows that are to go
            found = self._ask(
                lambda: hf_hub_download(self.repo_id, path, revision=commit, repo_type=self.kind, cache_dir=folder)
            )
            return Path(found).read_bytes()

    def create(self) -> tuple[Head, bool]:
        """Makes the repository, private until its first commit is whole; false if it was there after all.

        Raises UserError for one that is there and that this token may not see.
        """
        from huggingface_hub.errors import HfHubHTTPError

        is_made = True
        try:
            self._ask(lambda: self._api.create_repo(self.repo_id, repo_type=self.kind, private=True), HfHubHTTPError)
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code != 409:
                raise self._refusal(error) from error
            is_made = False
        head = self.head()
        if head is None and not is_made:
            raise UserError(f"{self.name}: is there already, and this token may not see it; give another name")
        if head is None:
            raise RunError(f"{self.name}: the hub made it, and does not show it; run the same command again")
        return head, is_made

    def open_to_all(self) -> None:
        """Makes the repository public."""
        self._ask(lambda: self._api.update_repo_settings(self.repo_id, private=False, repo_type=self.kind))
        self.is_private = False

    def commit(self, changes: Changes, parent: str | None, message: str) -> str:
        """Commits changes upon a parent; returns the commit. Raises Moved if the parent is no longer the newest."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from huggingface_hub.errors import HfHubHTTPError

        def send() -> Any:
            operations = [
                *(CommitOperationAdd(path, content) for path, content in changes.add.items()),
                *(CommitOperationDelete(path) for path in changes.remove),
            ]
            return self._api.create_commit(
                self.repo_id, operations, commit_message=message, repo_type=self.kind, parent_commit=parent
            )

        try:
            return str(self._ask(send, HfHubHTTPError).oid)
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (409, 412):
                raise Moved(
                    f"{self.name}: somebody else committed to it under way; it is as they left it. Run the same "
                    "command again"
                ) from error
            raise self._refusal(error) from error

    def tags(self) -> dict[str, str]:
        """Commits by tag."""
        return {one.name: one.target_commit for one in self._refs().tags}

    def branches(self) -> dict[str, str]:
        """Newest commits of the branches beside the main one, by name."""
        return {one.name: one.target_commit for one in self._refs().branches if one.name != "main"}

    def _refs(self) -> Any:
        return self._ask(lambda: self._api.list_repo_refs(self.repo_id, repo_type=self.kind))

    def tag(self, name: str, commit: str) -> None:
        """Tags a commit. Raises UserError if the tag stands for another one."""
        if name not in self.tags():
            where = {"revision": commit, "repo_type": self.kind}
            self._ask(lambda: self._api.create_tag(self.repo_id, tag=name, exist_ok=True, **where))  # of a lost answer
        there = self.tags().get(name, "")
        if there != commit:
            raise UserError(f"{self.name}: the tag {name} is there, of commit {there[:12]}; give another --tag")

    def history(self, revision: str = "main") -> list[str]:
        """Commits of a branch or tag, the newest first."""
        where = {"repo_type": self.kind, "revision": revision}
        return [one.commit_id for one in self._ask(lambda: self._api.list_repo_commits(self.repo_id, **where))]

    def squash(self, tags: Sequence[str], again: Sequence[str]) -> str:
        """Deletes tags, makes one commit of the main branch and sets the tags `again` to it; returns it."""
        for tag in tags:
            self._untag(tag)
        words = "Earlier versions were removed on request"
        self._ask(partial(self._api.super_squash_history, self.repo_id, commit_message=words, repo_type=self.kind))
        head = self.head()
        if head is None or head.commit is None:
            raise RunError(f"{self.name}: its history is one commit now, and the hub does not show it; try again")
        for tag in again:
            self._untag(tag)
            self.tag(tag, head.commit)
        return head.commit

    def _untag(self, tag: str) -> None:
        self._ask(partial(self._api.delete_tag, self.repo_id, tag=tag, repo_type=self.kind))

    def delete_contents(self, sha256: Collection[str]) -> None:
        """Deletes stored files by their SHA-256 for good. No commit is to have them any more."""
        stored = self._ask(lambda: list(self._api.list_lfs_files(self.repo_id, repo_type=self.kind)))
        gone = [one for one in stored if one.file_oid in sha256]
        if gone:
            self._ask(lambda: self._api.permanently_delete_lfs_files(self.repo_id, gone, repo_type=self.kind))

    def _ask(self, call: Callable[[], Answer], *passed: type[Exception]) -> Answer:
        """Answer of a call; waits and tries again while the hub is busy. Errors of `passed` are the caller's.

        Raises:
            UserError: the hub refuses it.
            RunError: it does not answer.
        """
        from huggingface_hub.errors import HfHubHTTPError

        for left in reversed(range(self.tries)):
            try:
                return call()
            except HfHubHTTPError as error:
                status = 0 if error.response is None else error.response.status_code
                if not left or (status != 429 and status < 500):
                    if isinstance(error, passed):
                        raise
                    raise self._refusal(error) from error
                wait_s, why = _wait_s(error.response, self.tries - 1 - left), f"answers {status}"
            except Exception as error:
                if not _is_connections(error):
                    raise
                if not left:
                    raise RunError(
                        f"{self.name}: the connection to the hub ends ({one_line(error)}); run the same command again"
                    ) from error
                wait_s, why = _wait_s(None, self.tries - 1 - left), "does not answer"
            self.say(f"{self.name}: the hub {why}; trying again in {wait_s:.0f} s")
            time.sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    def _refusal(self, error: Exception) -> UserError | RunError:
        """Error of a call that the hub refused, in the user's terms."""
        status = getattr(getattr(error, "response", None), "status_code", 0)
        told = one_line(error, 200)
        if status == 401:
            return UserError("the hub does not know this token: set HF_TOKEN, or run `hf auth login`")
        if status == 403:
            return UserError(f"{self.name}: this token may not write there; take another, or another owner ({told})")
        if status in (400, 422):
            return UserError(f"{self.name}: the hub refuses it: {told}")
        return RunError(f"{self.name}: the hub answers {status or told}; run the same command again")


def _is_connections(error: Exception) -> bool:
    """Whether an error is the connection's. The client's HTTP library goes by several names."""
    names = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("httpx")}
    return "TransportError" in names or isinstance(error, ConnectionError)


def _wait_s(response: Any, number: int) -> float:
    """Time to wait after so many tries: what the hub asks for, or twice as long each time."""
    asked = None if response is None else response.headers.get("Retry-After")
    with contextlib.suppress(ValueError):
        if asked is not None:
            return min(float(asked), LONGEST_WAIT_S)
    return float(min(2**number, LONGEST_WAIT_S))
