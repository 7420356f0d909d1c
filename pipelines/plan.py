"""What a run would do, and why: which stages are done, which rows are missing, which field or prompt changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.config import Config
from pipelines.fingerprint import stage_fingerprint
from pipelines.stage import Context, NotYetKnown, Stage
from pipelines.storage import Storage
from pipelines.store import Manifest, Output, latest_spec

State = Literal["done", "to_run", "partial", "unknown"]


@dataclass(frozen=True)
class StagePlan:
    """One line of a plan. Counts and fingerprint are None where they depend on work not done yet."""

    name: str
    state: State
    reason: str
    rows_total: int | None
    rows_to_run: int | None
    fingerprint: str | None


@dataclass(frozen=True)
class Resolved:
    """A stage whose inputs are all there: its identity and its place."""

    context: Context
    spec_record: dict[str, Any]
    manifest: Manifest | None


def resolve(
    stage: Stage, config: Config, storage: Storage, done: Mapping[str, Output], **options: Any
) -> Resolved | str:
    """The stage's context, or the name of the first input stage that is not done yet."""
    inputs: dict[str, Output] = {}
    digests: dict[str, str] = {}
    for name in stage.inputs(config):
        if name not in done:
            return name
        manifest = done[name].manifest()
        assert manifest is not None, f"{name} is in the list of done stages without a manifest"
        inputs[name], digests[name] = done[name], manifest.digest
    spec = stage.spec(config, storage)
    fingerprint = stage_fingerprint(stage.name, stage.code_version, spec.meaning, digests)
    output = Output(storage, stage.name, fingerprint)
    record = {
        "stage": stage.name,
        "code_version": stage.code_version,
        "meaning": spec.meaning,
        "inputs": digests,
        "origins": spec.origins,
    }
    return Resolved(Context(config, storage, inputs, output, **options), record, output.manifest())


def make_plan(stages: list[Stage], config: Config, storage: Storage, retry_failed: bool = False) -> list[StagePlan]:
    """The plan of every stage in order. Reads the store; writes nothing; computes nothing."""
    done: dict[str, Output] = {}
    plans = []
    for stage in stages:
        try:
            resolved = resolve(stage, config, storage, done, say=_silent, retry_failed=retry_failed)
        except NotYetKnown as unknown:
            total, to_run = unknown.counts.total, unknown.counts.to_run
            state: State = "partial" if to_run < total else "to_run"
            plans.append(StagePlan(stage.name, state, str(unknown), total, to_run, None))
            continue
        if isinstance(resolved, str):
            first = next(plan.name for plan in plans if plan.name == resolved or plan.state != "done")
            plans.append(StagePlan(stage.name, "unknown", f"unknown until {first}", None, None, None))
            continue
        plan = _plan_one(stage, resolved, storage)
        plans.append(plan)
        if plan.state == "done":
            done[stage.name] = resolved.context.output
    return plans


def is_done(resolved: Resolved, retry_failed: bool) -> bool:
    """Whether the committed output stands. With `retry_failed`, one that quarantined rows does not."""
    manifest = resolved.manifest
    return manifest is not None and not (retry_failed and manifest.rows_quarantined)


def _plan_one(stage: Stage, resolved: Resolved, storage: Storage) -> StagePlan:
    fingerprint = resolved.context.output.fingerprint
    manifest = resolved.manifest
    if manifest is not None and is_done(resolved, resolved.context.retry_failed):
        return StagePlan(stage.name, "done", "nothing to do", manifest.rows_in, 0, fingerprint)
    counts = stage.counts(resolved.context)
    state: State = "partial" if counts.to_run < counts.total - counts.refused or _begun(resolved) else "to_run"
    reason = explain(latest_spec(storage, stage.name), resolved.spec_record)
    if manifest is not None:
        reason = f"{manifest.rows_quarantined} quarantined rows to try again"
    return StagePlan(stage.name, state, reason, counts.total, counts.to_run, fingerprint)


def _begun(resolved: Resolved) -> bool:
    """Whether an interrupted run left working files of this very output."""
    context = resolved.context
    checkpoints = f"runs/{context.output.stage}/{context.output.fingerprint}"
    return bool(context.storage.files(context.output.folder, recursive=True)) or any(
        info.name.startswith(checkpoints)
        for info in context.storage.files(f"runs/{context.output.stage}", recursive=True)
    )


def explain(before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """Why an output has to be made: what differs from the one used last, named as a person would edit it."""
    if before is None:
        return "never run"
    changes = [f"input {name} changed" for name in now["inputs"] if before["inputs"].get(name) != now["inputs"][name]]
    if before["code_version"] != now["code_version"]:
        changes.append(f"code version: {before['code_version']} -> {now['code_version']}")
    old, new = flatten(before["meaning"]), flatten(now["meaning"])
    named: list[str] = []
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) == new.get(path):
            continue
        origin = _origin(path, now["origins"]) or _origin(path, before["origins"])
        named.append(f"{origin} changed" if origin else _change(path, old, new))
    changes += list(dict.fromkeys(named))
    return "; ".join(changes) if changes else "interrupted before it was finished"


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Nested plain data as {dotted path: leaf}; list items are `path[i]`."""
    if isinstance(value, dict) and value:
        return {k: v for key in value for k, v in flatten(value[key], f"{path}.{key}" if path else key).items()}
    if isinstance(value, list | tuple) and value:
        return {k: v for i, item in enumerate(value) for k, v in flatten(item, f"{path}[{i}]").items()}
    return {path: value}


def _origin(path: str, origins: Mapping[str, str]) -> str | None:
    fitting = [prefix for prefix in origins if path == prefix or path.startswith((f"{prefix}.", f"{prefix}["))]
    return origins[max(fitting, key=len)] if fitting else None


def _change(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if path not in old:
        return f"{path}: now {_short(new[path])}"
    if path not in new:
        return f"{path}: {_short(old[path])} removed"
    return f"{path}: {_short(old[path])} -> {_short(new[path])}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."


def _silent(message: str) -> None:
    pass
