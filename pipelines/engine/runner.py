"""Stage runner: reuses committed outputs and computes missing ones, in order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa

from pipelines.engine.fsck import forget_rows, gone_files
from pipelines.engine.lease import LEASE, Lease, lease
from pipelines.engine.model_pins import Unresolved, ask_new, pinned, write_pins
from pipelines.engine.plan import Resolved, resolve
from pipelines.engine.stage import Result, Stage
from pipelines.engine.storage import Storage
from pipelines.engine.store import (
    QUARANTINE_SCHEMA,
    Manifest,
    Output,
    mark_latest,
    mark_store,
    open_store,
    unmark_empty_store,
)
from pipelines.engine.usage import as_records
from pipelines.errors import RunError, UserError
from pipelines.progress import human_time
from pipelines.run_config import Config


class StageRun(NamedTuple):
    """Manifest of a stage's output, and whether this run made it."""

    manifest: Manifest
    is_new: bool

    @property
    def rows_computed(self) -> int:
        """Rows that this run computed."""
        return self.manifest.rows_computed if self.is_new else 0


def run_stages(
    stages: list[Stage], config: Config, *, retry_failed: bool = False, say: Callable[[str], None] = print
) -> list[StageRun]:
    """Runs the stages in order; those whose output is there already are not run again.

    The same call resumes after a crash.

    Raises:
        RunError: a stage cannot finish.
        UserError: the root is not a store of this format, another driver works on it, or a file that a stage needs
            is missing.
    """
    storage = open_store(config.root)
    pins, fault = ask_new(config, storage)
    config = pinned(config, pins)
    for stage in stages:
        try:
            stage.check(config, storage)
        except Unresolved as error:
            remedy = "give a commit, or `soundcap fetch-models CONFIG --to ROOT` where the hub can be reached"
            raise UserError(f"{fault or error}; {remedy}") from error
    open_store(config.root, write=True)  # not before the checks: a user's mistake leaves nothing behind
    with lease(storage, say) as held:
        mark_store(storage)  # another driver may just have taken its mark back
        storage.remove_partial()
        write_pins(storage, pins)
        for name, pin in pins.items():
            say(f"{name}: {pin.commit}, which this store keeps; licence {pin.licence or 'not said'}")
        try:
            return _run_all(stages, config, storage, held, retry_failed=retry_failed, say=say)
        except UserError:
            unmark_empty_store(storage, LEASE)
            raise


def _run_all(
    stages: list[Stage],
    config: Config,
    storage: Storage,
    held: Lease,
    *,
    retry_failed: bool,
    say: Callable[[str], None],
) -> list[StageRun]:
    done: dict[str, Output] = {}
    runs: list[StageRun] = []
    for stage in stages:
        resolved = resolve(stage, config, storage, done, to_run=True, say=say, retry_failed=retry_failed)
        assert not isinstance(resolved, str), f"{stage.name} stands before its input {resolved}"
        manifest = resolved.manifest if resolved.is_done and _is_whole(resolved, say) else None
        runs.append(StageRun(manifest or _run_one(stage, resolved, held, say), is_new=manifest is None))
        if config.source.sample is None:  # else a plan of the whole would tell its difference from a canary
            mark_latest(storage, stage.name, resolved.context.output.fingerprint)
        done[stage.name] = resolved.context.output
    return runs


def _is_whole(resolved: Resolved, say: Callable[[str], None]) -> bool:
    """True if nothing of a committed output is gone. Rows whose files are gone are forgotten, to be made again."""
    output = resolved.context.output
    gone = gone_files(output)
    if not gone:
        return True
    forget_rows(output.storage, gone)
    say(f"{output.stage}: {len(gone)} of the store's files gone, such as {gone[0]}; makes what they held again")
    return False


def _run_one(stage: Stage, resolved: Resolved, held: Lease, say: Callable[[str], None]) -> Manifest:
    started = time.monotonic()
    work = stage.work(resolved.context)
    counts = work.counts
    say(f"{stage.name}: {counts.to_run} of {counts.total} rows to run")
    if counts.total == 0 and not stage.is_aside:
        whose = f" of the split {stage.split}" if stage.split else ""
        splits = "; source.test_fraction, or a split column of source.table, decides the split" if stage.split else ""
        raise RunError(
            f"{stage.name}: got no rows{whose} to work on, wanted at least one. "
            f"`soundcap status` shows what the stages before it dropped or quarantined, and why{splits}."
        )
    result = work.make()
    held.check()
    seconds = time.monotonic() - started
    manifest = commit(resolved, result, seconds)
    out = f"{manifest.rows_out} rows out"
    if manifest.rows_quarantined:
        classes = Counter(row.error_class for row in result.quarantined).most_common()
        out += (
            f", {manifest.rows_quarantined} quarantined ({', '.join(f'{name} {n}' for name, n in classes)}; see status)"
        )
    say(f"{stage.name}: done, {out}, {human_time(seconds)}")
    return manifest


def commit(resolved: Resolved, result: Result, seconds: float) -> Manifest:
    """Commits a stage's output, whose files are in its folder already."""
    output = resolved.context.output
    quarantined = [{**vars(row), "stage": output.stage} for row in result.quarantined]
    manifest = Manifest(
        stage=output.stage,
        fingerprint=output.fingerprint,
        digest=result.digest,
        rows_in=result.rows_in,
        rows_out=result.rows_in - len(quarantined),
        rows_quarantined=len(quarantined),
        rows_computed=result.computed,
        seconds=round(seconds, 3),
        figures=dict(result.figures),
        usage=as_records(result.usage),
    )
    return output.commit(manifest, pa.Table.from_pylist(quarantined, schema=QUARANTINE_SCHEMA), resolved.spec)
