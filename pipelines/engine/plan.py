"""Plan and status of a run: which stages are done, which rows are missing, which field or prompt changed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.engine.fingerprint import canonical, stage_fingerprint
from pipelines.engine.ledger import counted_rows
from pipelines.engine.model_pins import Unresolved
from pipelines.engine.stage import Context, NotYetKnown, Stage, Work
from pipelines.engine.storage import Storage
from pipelines.engine.store import RUNS, Manifest, Output, latest, latest_spec
from pipelines.errors import UserError, one_line
from pipelines.run_config import Config

_NONE: Any = object()
State = Literal["done", "to_run", "partial", "unknown"]


@dataclass(frozen=True)
class StagePlan:
    """Plan of one stage. Counts and fingerprint are None where they depend on work not done yet.

    Attributes:
        rows_at_most: bound of the rows to run; exact where their number is known.
        rows_by_ledger: rows to run of each ledger, where they are known.
    """

    name: str
    state: State
    reason: str
    rows_total: int | None
    rows_to_run: int | None
    fingerprint: str | None
    rows_at_most: int | None = None
    rows_by_ledger: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Resolved:
    """Stage whose inputs are all committed, with its context, spec and manifest."""

    context: Context
    spec: dict[str, Any]
    manifest: Manifest | None

    @property
    def is_done(self) -> bool:
        """True if the output is committed. With `retry_failed`, one with quarantined rows is not done."""
        retried = self.context.retry_failed and self.manifest is not None and self.manifest.rows_quarantined > 0
        return self.manifest is not None and not retried


def resolve(
    stage: Stage,
    config: Config,
    storage: Storage,
    done: Mapping[str, Output],
    *,
    to_run: bool = False,
    retry_failed: bool = False,
    say: Callable[[str], None] = print,
) -> Resolved | str:
    """Resolved stage, or the name of its first input stage that is not done yet.

    Computes nothing, unless `to_run`: then work that must precede the recipe is done.
    """
    inputs: dict[str, Output] = {}
    for name in stage.inputs(config):
        if name not in done:
            return name
        inputs[name] = done[name]
    digests = {name: output.committed().digest for name, output in inputs.items()}
    recipe = stage.recipe_to_run(config, storage, say) if to_run else stage.recipe(config, storage)
    meaning = canonical(recipe.meaning())  # as read back from a stored spec, for the next plan's comparison
    output = Output(storage, stage.name, stage_fingerprint(stage.name, meaning, digests))
    spec = {
        "stage": stage.name,
        "meaning": meaning,
        "inputs": digests,
        "origins": dict(recipe.origins),
    }
    context = Context(config, storage, inputs, output, recipe, say, retry_failed)
    return Resolved(context, spec, output.manifest())


def make_plan(stages: list[Stage], config: Config, storage: Storage, retry_failed: bool = False) -> list[StagePlan]:
    """Plans of all stages, in order. Reads the store; computes nothing."""
    done: dict[str, Output] = {}
    plans: list[StagePlan] = []
    for stage in stages:
        try:
            resolved = resolve(stage, config, storage, done, retry_failed=retry_failed)
            work = None if isinstance(resolved, str) or resolved.is_done else stage.work(resolved.context)
            plan = None if isinstance(resolved, str) else _plan_one(stage, resolved, work)
        except NotYetKnown as unknown:
            counts = unknown.counts
            state: State = "partial" if counts.has_begun else "to_run"
            plans.append(StagePlan(stage.name, state, str(unknown), counts.total, counts.to_run, None, counts.to_run))
            continue
        except Unresolved as unresolved:
            plan, reason = None, str(unresolved)
        else:
            first = next((plan.name for plan in plans if plan.name not in done), "")
            reason = f"unknown until {first}{_fault(stage, config, storage)}"
        if plan is None or isinstance(resolved, str):
            no_bounds = {one.name for one in stages if one.is_model or one.is_aside}
            inputs = [plan for plan in plans if plan.name in set(stage.inputs(config)) - no_bounds]
            most = min(_bound(inputs, done), _rows_of_split(stage, done))
            plans.append(StagePlan(stage.name, "unknown", reason, None, None, None, most))
            continue
        plans.append(plan)
        if plan.state == "done":
            done[stage.name] = resolved.context.output
        elif work is not None and (preview := work.preview()) is not None:
            done[stage.name] = preview  # what follows is known, or is done already
    return plans


def _plan_one(stage: Stage, resolved: Resolved, work: Work | None) -> StagePlan:
    """Plan of a stage whose inputs are known. `work`: None if its output is done."""
    fingerprint, manifest = resolved.context.output.fingerprint, resolved.manifest
    if work is None:
        assert manifest is not None, "done means committed"
        return StagePlan(stage.name, "done", "nothing to do", manifest.rows_in, 0, fingerprint, 0)
    counts = work.counts
    state: State = "partial" if counts.has_begun or _begun(resolved) else "to_run"
    storage = resolved.context.storage
    if manifest is not None:
        reason = f"{counts.to_run} quarantined rows to try again"
    else:
        reason = explain(
            latest_spec(storage, stage.name), resolved.spec, stage.config_keys, has_begun=state == "partial"
        )
        reason += _other_total(stage, storage, counts.total)
    to_run = counts.to_run
    return StagePlan(stage.name, state, reason, counts.total, to_run, fingerprint, to_run, work.rows_by_ledger)


def _bound(inputs: Sequence[StagePlan], done: Mapping[str, Output]) -> int:
    """Most rows that a stage can have: one for each row that all its inputs have."""
    most = (
        done[one.name].committed().rows_out if one.name in done else one.rows_total or one.rows_at_most or 0
        for one in inputs
    )
    return min(most, default=0)


def _rows_of_split(stage: Stage, done: Mapping[str, Output]) -> int:
    """Clips of the split that a stage works on, if it works on one and they are known; else no bound."""
    if not stage.split or "clips" not in done:
        return sys.maxsize
    return int(done["clips"].committed().figures.get(stage.split, sys.maxsize))


def _fault(stage: Stage, config: Config, storage: Storage) -> str:
    """Words on what will end a run before it begins."""
    try:
        stage.check(config, storage)
    except Unresolved as unresolved:
        return f"; {unresolved}"
    except UserError as error:
        return f"; a run will refuse it: {one_line(error)}"
    except NotYetKnown:
        pass
    return ""


def _other_total(stage: Stage, storage: Storage, total: int) -> str:
    """Words on a total other than the last output's: lost films are seen before they are gone."""
    fingerprint = latest(storage, stage.name)
    last = Output(storage, stage.name, fingerprint).manifest() if fingerprint else None
    return f" ({total} rows, {last.rows_in} before)" if last is not None and last.rows_in != total else ""


def _begun(resolved: Resolved) -> bool:
    """True if an interrupted run left working files of this output."""
    storage, output = resolved.context.storage, resolved.context.output
    return bool(storage.files(output.folder, recursive=True)) or any(
        info.name.startswith(f"{RUNS}/{output.folder}")
        for info in storage.files(f"{RUNS}/{output.stage}", recursive=True)
    )


def read_status(stages: list[Stage], config: Config, storage: Storage) -> list[dict[str, Any]]:
    """Status record of each stage under this configuration: planned state, figures of its output, quarantined rows."""
    plans = make_plan(stages, config, storage)
    return [_status_of(stage, plan, storage) for stage, plan in zip(stages, plans, strict=True)]


def _status_of(stage: Stage, plan: StagePlan, storage: Storage) -> dict[str, Any]:
    fingerprint = plan.fingerprint if plan.state == "done" else None
    output = Output(storage, stage.name, fingerprint) if fingerprint else None
    manifest = output.manifest() if output else None
    return {
        "name": stage.name,
        "state": plan.state,
        "reason": plan.reason,
        "fingerprint": fingerprint,
        "rows_in": manifest.rows_in if manifest else 0,
        "rows_out": manifest.rows_out if manifest else 0,
        "rows_quarantined": manifest.rows_quarantined if manifest else 0,
        "rows_in_ledger": sum(sum(counted_rows(storage, name)) for name in stage.ledgers),
        "seconds": manifest.seconds if manifest else 0.0,
        "figures": manifest.figures if manifest else {},
        "quarantine": output.quarantine().to_pylist() if output and manifest else [],
    }


def explain(
    before: dict[str, Any] | None, now: dict[str, Any], config_keys: Mapping[str, str], *, has_begun: bool
) -> str:
    """Reason to recompute an output: its differences from the last one, by configuration key or file.

    `config_keys`: as of the stage.
    """
    if before is None:
        return "begun and not finished" if has_begun else "never run"
    changes = [f"input {name} changed" for name in now["inputs"] if before["inputs"].get(name) != now["inputs"][name]]
    old, new = flatten(before["meaning"]), flatten(now["meaning"])
    named: list[str] = []
    listed = {path.rpartition("[")[0] for spec in (before, now) for path in spec["origins"] if path.endswith("]")}
    named += [change for path in sorted(listed) for change in _item_changes(path, before, now)]
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) == new.get(path) or _longest_part(path, listed) is not None:
            continue
        origin = _origin(path, now["origins"]) or _origin(path, before["origins"])
        key = _config_key(path, now["stage"], config_keys)
        named.append(f"{origin} changed" if origin else _change(key, old.get(path, _NONE), new.get(path, _NONE)))
    changes += list(dict.fromkeys(named))
    return "; ".join(changes) if changes else "begun and not finished, or rows were set aside"


def _item_changes(path: str, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Changes of a list whose items have origins, as the warnings have: by item, wherever it stands."""
    old, new = _items(path, before), _items(path, now)
    gone = [(origin, item) for origin, item in old if item not in [other for _, other in new]]
    come = [(origin, item) for origin, item in new if item not in [other for _, other in old]]
    was, is_now = {_name_of(origin) for origin, _ in gone}, {_name_of(origin) for origin, _ in come}
    told = [f"{origin} {'changed' if _name_of(origin) in was else 'added'}" for origin, _ in come]
    told += [f"{origin} removed" for origin, _ in gone if _name_of(origin) not in is_now]
    if not told and old != new and [item for _, item in old] != [item for _, item in new]:
        told = [f"{new[0][0].partition(' (')[0]}: another order"]
    return told


def _items(path: str, spec: dict[str, Any]) -> list[tuple[str, Any]]:
    """Items of a list of a spec, with their origins."""
    value = spec["meaning"]
    for part in path.split("."):
        value = value.get(part) or {}
    return [(spec["origins"].get(f"{path}[{place}]", path), item) for place, item in enumerate(value)]


def _name_of(origin: str) -> str:
    """Name in an origin, which is the same in a copy of the file."""
    return origin.partition(" (")[2] or origin


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Flattened plain data, {dotted path: leaf}; list items are `path[i]`."""
    if isinstance(value, dict) and value:
        return {k: v for key in value for k, v in flatten(value[key], f"{path}.{key}" if path else key).items()}
    if isinstance(value, list | tuple) and value:
        return {k: v for i, item in enumerate(value) for k, v in flatten(item, f"{path}[{i}]").items()}
    return {path: value}


def _origin(path: str, origins: Mapping[str, str]) -> str | None:
    part = _longest_part(path, origins)
    return None if part is None else origins[part]


def _config_key(path: str, stage: str, config_keys: Mapping[str, str]) -> str:
    if path.endswith("_version"):
        return "soundcap's own code"
    part = _longest_part(path, config_keys)
    return f"{stage}.{path}" if part is None else config_keys[part] + path.removeprefix(part)


def _longest_part(path: str, parts: Iterable[str]) -> str | None:
    """Longest of some dotted paths that is this path or leads to it."""
    fitting = [part for part in parts if path == part or path.startswith((f"{part}.", f"{part}["))]
    return max(fitting, key=len, default=None)


def _change(key: str, old: Any, new: Any) -> str:
    if old is _NONE:
        return f"{key}: now {_short(new)}"
    if new is _NONE:
        return f"{key}: {_short(old)} removed"
    if _short(old) == _short(new):  # they differ further behind
        pairs = enumerate(zip(str(old), str(new), strict=False))
        same = next((place for place, (a, b) in pairs if a != b), len(str(old)))
        old, new = (f"...{str(value)[same:]}" for value in (old, new))
    return f"{key}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
