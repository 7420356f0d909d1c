"""What the store holds now: the last output of each stage, and rows that wait in the ledger."""

from __future__ import annotations

from typing import Any

from pipelines.config import Config
from pipelines.ledger import Ledger
from pipelines.plan import make_plan
from pipelines.stages import all_stages
from pipelines.storage import Storage
from pipelines.store import Output


def read_status(config: Config) -> list[dict[str, Any]]:
    """One record for each stage: state as in a plan, figures of its last committed output, quarantined rows."""
    storage = Storage(config.root)
    plans = make_plan(all_stages(), config, storage)
    return [_one(plan.name, plan.state, plan.reason, storage) for plan in plans]


def _one(name: str, state: str, reason: str, storage: Storage) -> dict[str, Any]:
    latest = f"{name}/latest.json"
    fingerprint = storage.read_json(latest)["fingerprint"] if storage.exists(latest) else None
    output = Output(storage, name, fingerprint) if fingerprint else None
    manifest = output.manifest() if output else None
    return {
        "name": name,
        "state": state,
        "reason": reason,
        "fingerprint": fingerprint,
        "rows_in": manifest.rows_in if manifest else 0,
        "rows_out": manifest.rows_out if manifest else 0,
        "rows_quarantined": manifest.rows_quarantined if manifest else 0,
        "rows_in_ledger": len(Ledger(storage, name).read()),
        "seconds": manifest.seconds if manifest else 0.0,
        "figures": manifest.figures if manifest else {},
        "quarantine": output.quarantine() if output and manifest else [],
    }
