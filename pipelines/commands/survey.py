"""Survey of a folder of videos, and the configuration that suits it: implementation of `soundcap init`.

A configuration starts from one of `configs/`, with real models or with the demo's. What the survey found changes it,
each change with its reason.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc
import yaml

from flowley.training.settings import TrainSettings
from pipelines.commands.keys import all_keys, commented
from pipelines.engine.fingerprint import digest
from pipelines.engine.storage import Storage
from pipelines.engine.store import open_store
from pipelines.errors import UserError, one_line, printable, require_place
from pipelines.media.faults import MediaError, NoAudioStream, UnreadStream
from pipelines.media.kinds import kind_of
from pipelines.media.normalise import unread
from pipelines.media.probe import probe, require_picture
from pipelines.media.process import Deadline
from pipelines.run_config import Config, SourceConfig, Workers
from pipelines.stages.listing import SourceListing
from pipelines.stages.source import NOT_IN_TABLE, SourceFolder, list_source, split_share

Models = Literal["real", "demo"]
CHECKOUT = Path(__file__).parents[2]
TEMPLATES: dict[Models, str] = {"real": "configs/vggsound.yaml", "demo": "configs/demo.yaml"}
PLACED = ("captions.instruction", "captions.warnings", "captioner.instruction")
"""Keys of files of the checkout. Models lie there too, in the demo's configuration."""
SAMPLE, BUCKET_SAMPLE = 64, 8
"""Videos that are looked into."""
LEAST_SHARE = 0.5
"""Share of the videos that a table must tell of to be used."""
HASHED_BYTES = 4 * 2**30
"""Size of a source up to which it is hashed to see its splits."""
MAX_TABLES, MAX_TABLE_BYTES = 20, 256 * 2**20
PROBE_S = 60.0
TEMPLATE_CLIPS: dict[Models, int] = {"real": 183_730, "demo": 96}
"""Training clips of VGGSound and of the demo, which the steps of the templates are for."""
LEAST_STEPS = 50
GPU_STAGES = ("captions", "captioner", "silent_captions", "features", "flowley", "samples")
"""Stages that work on GPUs."""
TABLES = (".csv", ".tsv", ".tab", ".parquet")


@dataclass(frozen=True)
class Look:
    """Header of a video, as far as it tells whether the video can be a clip.

    Attributes:
        duration_s: of the picture; inf where it is not told.
        fault: why it can be no clip, or "".
        sha256: of a small source's video, else "".
    """

    name: str
    duration_s: float
    fault: str
    sha256: str = ""


@dataclass(frozen=True)
class Survey:
    """Content of a source folder.

    Attributes:
        source: location of the videos, and of the table that tells of them, if there is one.
        found: its listing.
        other_tables: tables that are not used, each with the reason.
        looks: videos that were looked into.
    """

    source: SourceConfig
    found: SourceFolder
    other_tables: Mapping[str, str]
    looks: Sequence[Look]

    @property
    def good(self) -> list[Look]:
        """Videos with picture and sound."""
        return [look for look in self.looks if not look.fault]

    @property
    def has_splits(self) -> bool:
        """Whether the table tells the split of any video."""
        return any(self.found.files["split"].to_pylist())

    def clips(self, duration_s: float) -> int:
        """Number of clips of that length, estimated from the videos that were looked into."""
        long_enough = sum(look.duration_s >= duration_s for look in self.good)
        return round(len(self.found.files) * long_enough / max(1, len(self.looks)))

    def best_duration_s(self, longest_s: float) -> float:
        """Length of clips, whole seconds or `longest_s`, that keeps most of the videos' time; of equals, the least."""
        lengths_s = [length for length in range(1, math.floor(longest_s)) if self.clips(length)] + [longest_s]
        return max(map(float, lengths_s), key=lambda length_s: (self.clips(length_s) * length_s, -length_s))

    def lines(self) -> Iterable[str]:
        """Lines of text on what was found."""
        files, looks = self.found.files, self.looks
        labels = pc.count_distinct(files["label"].filter(pc.not_equal(files["label"], ""))).as_py()
        yield f"{self.source.folder}: {files.num_rows} videos, {labels or 'no'} labels"
        if self.source.table:
            counts = Counter(files["split"].to_pylist())
            splits = f"{counts['train']} in train, {counts['test']} in test" if self.has_splits else "without splits"
            yield f"{self.source.table}: tells of {files.num_rows} of them, {splits}"
            if self.has_splits and not counts["test"] + counts[None]:
                yield "no video is a test, so there will be nothing to sample and to score"
        yield from (f"{table}: not used: {why}" for table, why in self.other_tables.items())
        for kind, names in self.found.passed_over.items():
            yield f"passed over, {kind}: {_some(names)}"
        yield from (f"{one.row_id}: {one.error_class}: {one.message}" for one in self.found.refused[:5])
        if len(self.found.refused) > 5:
            yield f"and {len(self.found.refused) - 5} more that are refused"
        sample = "" if len(looks) == files.num_rows else f" of a sample of {len(looks)}"
        known_s = sorted(look.duration_s for look in self.good if look.duration_s < math.inf)
        length = f", {known_s[0]:.1f} to {known_s[-1]:.1f} s long" if known_s else ""
        yield f"usable{sample}: {len(self.good)} with picture and sound{length}"
        for fault in sorted({look.fault for look in looks} - {""}):
            yield f"not usable, {fault}: {_some([look.name for look in looks if look.fault == fault])}"


def survey(config: Config) -> Survey:
    """Survey of `config.source.folder`. Raises UserError if no video there has picture and sound."""
    listing = SourceListing(config.source.folder, rescan=True)
    source, found, other_tables = _with_table(config, listing)
    names = found.files["name"].to_pylist()
    size = SAMPLE if found.folder.is_local else BUCKET_SAMPLE
    # by digest: names may have a rhythm, as of pairs of which one is silent
    chosen = sorted(sorted(names, key=lambda name: digest(name))[:size])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = list(pool.map(lambda name: _look(found.folder, name), chosen))
    size_bytes = pc.sum(found.files["size"]).as_py() or 0
    if len(looks) == len(names) and found.folder.is_local and size_bytes <= HASHED_BYTES:
        looks = _hashed(found.folder, looks)
    seen = Survey(source, found, other_tables, looks)
    if not seen.good:
        why = "; ".join(f"{look.name}: {look.fault}" for look in looks[:3]) or "none can be read as a file"
        raise UserError(
            f"{source.folder}: of {len(looks)} videos none has picture and sound ({why}); the captions need sound. For "
            "silent video, see `soundcap generate` and `flowley generate`"
        )
    return seen


def _look(folder: Storage, name: str) -> Look:
    try:
        with folder.local(name) as path:
            streams = probe(path, Deadline(PROBE_S))
            video = require_picture(path, streams)
    except (MediaError, OSError) as error:
        return Look(name, 0.0, type(error).__name__)
    if unread(streams):
        return Look(name, 0.0, UnreadStream.__name__)
    duration_s = video.duration_s or (streams.duration_s or math.inf) - max(0, video.start_us or 0) / 1e6
    return Look(name, duration_s, "" if streams.audio else NoAudioStream.__name__)


def _hashed(folder: Storage, looks: Sequence[Look]) -> list[Look]:
    """Looks with the digests of usable videos; of those with the same bytes only the first stays usable."""
    first_of: dict[str, str] = {}
    hashed = [look if look.fault else replace(look, sha256=folder.sha256(look.name)) for look in looks]
    return [
        look
        if look.fault or first_of.setdefault(look.sha256, look.name) == look.name
        else replace(look, fault="DuplicateSource")
        for look in hashed
    ]


# --- tables ---------------------------------------------------------------------------------------------------


def _with_table(config: Config, listing: SourceListing) -> tuple[SourceConfig, SourceFolder, dict[str, str]]:
    """Source with the table that tells labels or splits of most videos, without one if none does; and the others."""
    videos = sum(kind_of(name) == "video" for name in listing.files["name"].to_pylist())
    best: tuple[SourceConfig, SourceFolder] | None = None
    others: dict[str, str] = {}
    for path in _tables(config.source.folder, listing):
        source = config.source.model_copy(update={"table": path})
        try:
            found = list_source(config.model_copy(update={"source": source}), listing)
        except UserError as error:
            others[path] = one_line(error)
            continue
        rows, best_rows = found.files.num_rows, best[1].files.num_rows if best else 0
        if not any(found.files["label"].to_pylist() + found.files["split"].to_pylist()):
            others[path] = f"it lists {rows} videos, but no label and no split"
        elif rows < LEAST_SHARE * videos:
            others[path] = f"it tells of {rows} of {videos} videos; with it in source.table the others are left out"
        elif best is None or rows > best_rows:
            if best:
                others[str(best[0].table)] = f"it tells of {best_rows} videos, {path} of {rows}; one table can be used"
            best = source, found
        else:
            others[path] = f"it tells of {rows} videos, {best[0].table} of {best_rows}; one table can be used"
    return *(best or (config.source, list_source(config, listing))), others


def _tables(folder: str, listing: SourceListing) -> list[str]:
    """Addresses of the tables in a source folder and beside it."""
    parent = (
        str(Path(os.path.normpath(f"{folder}/.."))) if "://" not in folder else folder.rstrip("/").rpartition("/")[0]
    )
    beside = Storage(parent).files() if not parent.endswith(":/") else []
    files = listing.files.select(["name", "size"]).to_pylist()
    inside = [(one["name"], one["size"]) for one in files if "/" not in one["name"]]
    places = [(folder.rstrip("/"), inside), (parent, [(one.name, one.size) for one in beside])]
    tables = [
        name if place == "." else f"{place}/{name}"
        for place, names in places
        for name, size in names
        if name.casefold().endswith(TABLES) and not name.startswith(".") and 0 < size <= MAX_TABLE_BYTES
    ]
    return list(dict.fromkeys(tables))[:MAX_TABLES]


# --- the configuration ----------------------------------------------------------------------------------------


class Draft:
    """Configuration that starts from a template and is changed key by key, with reasons."""

    def __init__(self, template: Path) -> None:
        self.data: dict[str, Any] = yaml.safe_load(template.read_text())
        self.reasons: dict[str, str] = {}

    def __getitem__(self, key: str) -> Any:
        value: Any = self.data
        for part in key.split("."):
            value = value[part]
        return value

    def set(self, key: str, value: Any, reason: str = "") -> None:
        *sections, name = key.split(".")
        section = self.data
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
        if reason:
            self.reasons[key] = reason


def write_config(folder: str, target: Path, *, root: str, models: Models | None, say: Callable[[str], None]) -> None:
    """Surveys a folder of videos and writes a configuration for it.

    Args:
        folder: local folder or s3:// address of the videos.
        target: new file.
        root: the configuration's root.
        models: real models or the demo's; None: real ones if this machine has a GPU.
    """
    if not folder or not root:
        raise UserError("FOLDER and --root: got an empty name; give a folder of videos, and one for the run's state")
    if target.suffix not in (".yaml", ".yml"):
        raise UserError(f"-o {target}: a configuration is a .yaml file; give such a name")
    if target.exists():
        raise UserError(f"-o {target}: is there already; give another name, or remove it")
    require_place(target.parent, f"-o {target}")
    open_store(root)
    gpus = _gpus()
    models = models or ("real" if gpus else "demo")
    template = CHECKOUT / TEMPLATES[models]
    if not template.is_file():
        raise UserError(f"{template} does not exist; `soundcap init` needs the project's folder, installed with pip -e")
    draft = Draft(template)
    draft.set("root", root, "Where all state lives; on a cluster, an address that every node reaches, such as s3://.")
    draft.data["source"] = {"folder": folder, "table": None, "test_fraction": SourceConfig(folder=folder).test_fraction}
    _place(draft)
    seen = survey(Config.model_validate(draft.data))
    for line in seen.lines():
        say(line)
    draft.set("source.table", seen.source.table, _table_reason(seen))
    duration_s = _fit_duration(draft, seen)
    _fit_split(draft, seen, duration_s)
    _fit_machine(draft, models, gpus)
    _fit_training(draft, models, round(seen.clips(duration_s) * (1 - draft["source.test_fraction"])))
    head = HEADS[models] + [printable(f"# Found: {line}") for line in seen.lines()]
    Config.model_validate(draft.data)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(head) + "\n" + commented(draft.data, draft.reasons))
    if models == "demo":
        say("demo models: they know only the demo's world; their captions and sounds of these videos mean nothing")
    say(f"wrote {target}; next: soundcap plan {target}, then soundcap run {target} --until clips")


PATHS = ("# Paths count from the folder in which soundcap is called. `soundcap keys` lists all other keys.",)
HEADS: dict[Models, list[str]] = {
    "real": [
        "# Pin each model's revision to a commit: it is part of every caption's identity.",
        *PATHS,
    ],
    "demo": [
        "# The models are the demo's: small, and they know only its world. What they say of these videos is of no use,",
        "# but every stage runs, on a CPU. `soundcap init --models real` writes a configuration with real models.",
        *PATHS,
    ],
}


def _gpus() -> int:
    import torch  # `soundcap --help` starts without

    return int(torch.cuda.device_count())


def _place(draft: Draft) -> None:
    """Gives paths of the checkout's files as the working directory sees them."""
    defaults = {key.name: key.default for key in all_keys()}
    for key in PLACED:
        draft.set(key, _placed(defaults[key]))
    for section in ("captions.model", "captioner.model", "features.visual", "features.text", "features.codec"):
        draft.set(f"{section}.path", _placed(draft[section]["path"]))


def _placed(path: str) -> str:
    return path if Path(path).exists() or not (CHECKOUT / path).exists() else str(CHECKOUT / path)


def _table_reason(seen: Survey) -> str:
    if seen.source.table:
        left_out = len(seen.found.passed_over.get(NOT_IN_TABLE, []))
        return "It tells labels or splits of these videos." + f" {left_out} files are not in it." * bool(left_out)
    unused = f" Not used: {'; '.join(seen.other_tables)}." if seen.other_tables else ""
    labels = "Labels are the names of subfolders. " if any(seen.found.files["label"].to_pylist()) else ""
    return f"{labels}No table tells of these videos.{unused} docs/inputs.md says what one looks like."


def _fit_duration(draft: Draft, seen: Survey) -> float:
    longest_s = float(draft["clips.duration_s"])
    duration_s = seen.best_duration_s(longest_s)
    if not seen.clips(duration_s):
        raise UserError(f"{seen.source.folder}: no usable video is a second long or longer; wanted longer ones")
    fits = sum(look.duration_s >= duration_s for look in seen.good)
    whose = "what the models are made for" if duration_s == longest_s else "what keeps most of the videos' time"
    reason = (
        f"Change it with flowley.training.duration_s. {duration_s:g} s is {whose}: of {len(seen.good)} usable "
        f"videos that were looked into, {fits} are as long or longer, and are cut off. Shorter ones are quarantined."
    )
    draft.set("clips.duration_s", duration_s, reason)
    lost = 1 - fits / len(seen.looks)
    if lost > Workers().max_quarantined_share / 2:
        reason = f"Of {len(seen.looks)} videos that were looked into, {lost:.0%} will be quarantined; more end the run."
        draft.set("clips.execution.max_quarantined_share", min(1.0, math.ceil(20 * lost + 2) / 20), reason)
    draft.set("flowley.training.duration_s", duration_s, "As clips.duration_s.")
    return duration_s


def _fit_split(draft: Draft, seen: Survey, duration_s: float) -> None:
    """Chooses the share of tests so that a few videos have both splits, where the content decides."""
    shares = sorted(split_share(look.sha256) for look in seen.good if look.sha256 and look.duration_s >= duration_s)
    fraction = draft["source.test_fraction"]
    if seen.has_splits or len(shares) < 2 or shares[0] < fraction <= shares[-1]:
        return
    tests = max(1, round(fraction * len(shares)))
    low, high = shares[tests - 1], shares[tests]
    between = next(near for digits in range(2, 12) if low < (near := round((low + high) / 2, digits)) <= high)
    reason = f"So few videos: this makes {tests} of {len(shares)} a test. The content of each decides which."
    draft.set("source.test_fraction", between, reason)


def _fit_machine(draft: Draft, models: Models, gpus: int) -> None:
    """Chooses the number of workers for the GPUs and cores of this machine, where it has GPUs."""
    if models == "demo":
        return
    if not gpus:
        for stage in ("clips", "scores", *GPU_STAGES):
            reason = "As in the cluster of ray_cluster.yaml: this machine has no GPU."
            draft.set(f"{stage}.execution.workers", draft[f"{stage}.execution.workers"], reason)
        return
    cores = os.cpu_count() or 1
    reason = f"This machine has {gpus} GPUs and {cores} cores."
    for stage in ("clips", "scores"):
        draft.set(f"{stage}.execution.workers", cores, reason)
    for stage in GPU_STAGES:
        draft.set(f"{stage}.execution.workers", gpus, reason)
        if "cpus_per_worker" in draft[f"{stage}.execution"]:
            draft.set(f"{stage}.execution.cpus_per_worker", max(1, min(8, cores // gpus)))
    at_once = gpus * draft["captioner.execution.settings.per_device_batch"]
    for key, least in (("flowley.training.batch_size", gpus), ("captioner.training.batch_size", at_once)):
        draft.set(key, max(1, draft[key] // least) * least)


def _fit_training(draft: Draft, models: Models, clips: int) -> None:
    """Keeps the template's number of passes over the clips, where there are fewer."""
    share = clips / TEMPLATE_CLIPS[models]
    if share >= 1:
        return

    def fewer(steps: int) -> int:
        return max(LEAST_STEPS, round(steps * share))

    steps = draft["flowley.training.steps"]
    usual = TrainSettings(**draft["flowley.training"])
    whose = "VGGSound" if models == "real" else "the demo"
    reason = (
        f"For some {clips} training clips; change it when you add many. At least {LEAST_STEPS}, or as many passes as "
        f"over the {TEMPLATE_CLIPS[models]} of {whose}."
    )
    draft.set("flowley.training.steps", fewer(steps), reason)
    draft.set("flowley.training.warmup_steps", min(usual.warmup_steps, fewer(steps) // 10), "A tenth of the steps.")
    if usual.decay_steps[0] < steps:
        draft.set("flowley.training.decay_steps", [fewer(step) for step in usual.decay_steps], reason)
    if "max_steps" in draft["captioner.training"]:
        draft.set("captioner.training.max_steps", fewer(draft["captioner.training.max_steps"]), reason)
        return
    at_once = draft["captioner.execution.workers"] * draft["captioner.execution.settings.per_device_batch"]
    batch_size = max(at_once, clips // LEAST_STEPS // at_once * at_once)
    if batch_size < draft["captioner.training.batch_size"]:
        reason = (
            f"So small that one pass over some {clips} training clips is {LEAST_STEPS} steps, or as many as can be."
        )
        draft.set("captioner.training.batch_size", batch_size, reason)


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' * (len(names) > 3)} ({len(names)})"
