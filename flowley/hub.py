"""Files of models on the hub: which a model needs, and their folder on this machine. Starts without torch."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class NoAnswer(ValueError):
    """Hub that cannot be reached, or does not answer in time."""


ANSWER_S = 5.0
"""Time in which the hub has to answer a first question."""


def is_hub_id(name: str) -> bool:
    """True for a name that may be a hub id, as `owner/name` is and no path."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def find_folder(
    path_or_id: str | Path,
    files: Sequence[str] | None,
    *,
    revision: str | None,
    wanted: str,
    say: Callable[[str], None] | None = None,
    **download: Any,
) -> Path:
    """The local folder or, where no such folder exists, the downloaded `files` of that hub id.

    Args:
        path_or_id: a folder, or a hub id like `owner/name`.
        files: names or patterns; None: see `needed`.
        revision: of a hub id; None: its newest.
        wanted: the folder's contents, for the error.
        say: takes a line before a download.
        download: further arguments of `huggingface_hub.snapshot_download`: token, cache_dir ...

    Raises:
        ValueError: neither a folder nor a repository that can be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RevisionResolutionError

    if Path(path_or_id).is_dir():
        return Path(path_or_id)
    if not is_hub_id(str(path_or_id)):
        raise ValueError(f"{path_or_id}: neither a folder nor a hub id, like owner/name; wanted {wanted}")
    try:
        if files is None or say is not None:
            files = _announced(str(path_or_id), files, revision, say, **download)
        return Path(snapshot_download(str(path_or_id), revision=revision, allow_patterns=list(files), **download))
    except (HfHubHTTPError, RevisionResolutionError, OSError, ValueError) as error:
        raise ValueError(f"{path_or_id}: no folder, and {_why_not(error, revision)}; wanted {wanted}") from error


class HubModel(NamedTuple):
    """Model of the hub at a revision: its commit, and the licence of its card and `model_type`, None where not said."""

    commit: str
    licence: str | None
    model_type: str | None


def describe(hub_id: str, revision: str | None) -> HubModel:
    """Facts that the hub tells of a revision of a hub id.

    Without an answer within ANSWER_S: the commit alone that this machine's cache of the hub has for it.

    Raises:
        ValueError: the hub has no such model or revision.
        NoAnswer: it does not answer, and the cache has none.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi().model_info(hub_id, revision=revision, timeout=ANSWER_S)
    except HfHubHTTPError as error:
        raise ValueError(f"{hub_id}: {_why_not(error, revision)}") from error
    except Exception as error:  # noqa: BLE001 - of the client's HTTP library: no answer
        try:
            cached = snapshot_download(hub_id, revision=revision, local_files_only=True, allow_patterns=[])
        except (OSError, ValueError):
            raise NoAnswer(f"{hub_id}: {_why_not(error, revision)}") from error
        return HubModel(Path(cached).name, None, None)
    return HubModel(str(info.sha), licence_in(info.card_data or {}), (info.config or {}).get("model_type"))


def licence_in(card: Any) -> str | None:
    """Licence that the data of a model's card name, or None."""
    licence = card.get("license_name") or card.get("license")
    return str(licence) if licence else None


def _why_not(error: BaseException, revision: str | None) -> str:
    """Words on a failed download."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    for one in causes:
        if isinstance(one, GatedRepoError):
            return "the hub gives it to those alone who accepted its terms: do so, and set HF_TOKEN"
        if isinstance(one, RevisionNotFoundError):
            return f"the hub has no revision {revision!r} of it"
        if isinstance(one, RepositoryNotFoundError):
            return "the hub has no such model, or none that you may see: HF_TOKEN names you"
    return f"the hub does not answer, and this machine has no copy ({one_line(causes[-1])})"


def needed(names: Iterable[str]) -> list[str]:
    """Names of a model repository's files that loading it takes: no other framework's weights, no media."""
    names = list(names)
    is_safe = any(name.endswith(".safetensors") for name in names)
    left_out = (*_OTHER_FRAMEWORKS, *_MEDIA, *(_UNSAFE if is_safe else ()))
    return [name for name in names if not name.lower().endswith(left_out) and not name.startswith(".")]


_OTHER_FRAMEWORKS = (".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".tflite", ".gguf", ".mlmodel", ".pb")
_UNSAFE = (".bin", ".pt", ".pth", ".ckpt")
_MEDIA = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".pdf", ".mp4", ".mov", ".webm", ".wav", ".mp3", ".flac")


def hub_files(hub_id: str, files: Sequence[str] | None, *, revision: str | None, **download: Any) -> list[Any]:
    """The `files` (as in `find_folder`) of a hub id: `filename`, `file_size` in bytes and `will_download` of each."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class NoBar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **{**settings, "disable": True})  # type: ignore[no-untyped-call]

    patterns = None if files is None else list(files)
    found: Any = snapshot_download(
        hub_id, revision=revision, dry_run=True, allow_patterns=patterns, tqdm_class=NoBar, **download
    )
    names = {one.filename for one in found} if files is not None else set(needed(one.filename for one in found))
    return [one for one in found if one.filename in names]


def _announced(
    hub_id: str,
    files: Sequence[str] | None,
    revision: str | None,
    say: Callable[[str], None] | None,
    **download: Any,
) -> list[str]:
    """Names of the files to download, after a line on their size. Without the hub: what is there may do."""
    try:
        found = hub_files(hub_id, files, revision=revision, **download)
    except OSError:  # no answer: `snapshot_download` tells whether this machine has the files
        return ["config.json"] if files is None else list(files)
    missing = [one.file_size for one in found if one.will_download]
    if missing and say is not None:
        say(f"  {hub_id}: {len(missing)} files, {sum(missing) / 2**30:.2f} GiB, from the hub to {socket.gethostname()}")
    return [one.filename for one in found]


def one_line(error: BaseException) -> str:
    """The error in at most one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
