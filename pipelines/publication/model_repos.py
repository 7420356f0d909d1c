"""Contents of a model's repository: the captioner's adapter, or the sound model, with a card and the record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from pipelines.engine.plan import make_plan
from pipelines.engine.store import Output, open_store
from pipelines.errors import UserError
from pipelines.publication.contents import PUBLICATION, Content, Head, read_record, refuse_leaks
from pipelines.report.templates import render
from pipelines.run_config import Config
from pipelines.stages import wanted_stages
from pipelines.stages.captioner import ADAPTER_FOLDER
from pipelines.stages.flowley import MODEL_FOLDER
from pipelines.stages.listing import SourceListing

ModelKind = Literal["captioner", "flowley"]


@dataclass(frozen=True)
class ModelEdition:
    """Next state of a model's repository: contents by path, and fingerprints of the outputs behind them."""

    wanted: Mapping[str, Content | None]
    stages: Mapping[str, str]


@contextmanager
def model_edition(kind: ModelKind, config: Config, head: Head, repository: str | None) -> Iterator[ModelEdition]:
    """Next state of a model's repository, while its weights are at hand.

    Raises:
        UserError: the model is not trained, the place holds something else, or a model that it needs has no hub id.
    """
    read_record(head, kind)
    done, states = _done(config)
    if kind not in done:
        raise UserError(
            f"nothing to publish: stage {kind} is {states[kind]}, wanted done; `soundcap run CONFIG --until {kind}` "
            "makes it"
        )
    output, facts = done[kind], _facts(kind, config, done)
    settings, weights, change = _PARTS[kind]
    with ExitStack() as stack:
        described = json.loads(output.read_bytes(settings))
        needs = change(described, config)
        folder = settings.rpartition("/")[0]
        wanted: dict[str, Content | None] = {
            settings.rpartition("/")[2]: json.dumps(described, indent=2).encode(),
            weights: stack.enter_context(output.storage.local(output.name(f"{folder}/{weights}"))),
            "README.md": _card(kind, config, facts, needs, repository).encode(),
        }
        stages: dict[str, str] = {kind: output.fingerprint}
        record = {"what": kind, "stages": stages, "files": sorted([*wanted, PUBLICATION])}
        wanted[PUBLICATION] = json.dumps(record, indent=1, sort_keys=True).encode()
        refuse_leaks(wanted, config)
        yield ModelEdition(wanted, stages)


def _done(config: Config) -> tuple[dict[str, Output], dict[str, str]]:
    """Committed outputs of this configuration, and each stage's state."""
    storage = open_store(config.root)
    listing = SourceListing(config.source.folder, rescan=False)
    plans = make_plan(wanted_stages(config, listing=listing), config, storage)
    done = {p.name: Output(storage, p.name, p.fingerprint) for p in plans if p.state == "done" and p.fingerprint}
    return done, {p.name: f"{p.state.replace('_', ' ')} ({p.reason})" for p in plans}


def _hub_id(config: Config, key: str, path: str, revision: str | None) -> tuple[str, str | None]:
    """Hub id and revision of a model that a published one needs. Raises UserError for a folder without one."""
    named = config.publish.hub_ids.get(key)
    if named is not None:
        hub_id, _, given = named.partition("@")
        return hub_id, given or None
    if revision is None:
        raise UserError(
            f"{key}.path: {path} is a folder of this machine, which nobody else has; say in publish.hub_ids which "
            f"model of the hub it is: {{{key}: OWNER/NAME}}"
        )
    return path, revision


def _adapter(described: dict[str, Any], config: Config) -> dict[str, str]:
    """Names the adapter's base by its hub id, for others; returns what it needs, by key."""
    key, model = "captioner.model", config.captioner.model
    base, revision = _hub_id(config, key, model.path, model.revision)
    described |= {"base_model_name_or_path": base, "revision": revision}
    return {key: base if revision is None else f"{base}@{revision}"}


def _network(described: dict[str, Any], config: Config) -> dict[str, str]:
    """Names the encoders and the codec by their hub ids, for others; returns what it needs, by key."""
    features, needs = described["features"], {}
    for name, field in (("visual", "visual"), ("text", "text"), ("codec", "codec_path")):
        if features[field] is None:
            continue
        key = f"features.{name}"
        hub_id, revision = _hub_id(config, key, features[field], features[f"{name}_revision"])
        features |= {field: hub_id, f"{name}_revision": revision}
        needs[key] = hub_id if revision is None else f"{hub_id}@{revision}"
    return needs


_PARTS: Mapping[ModelKind, tuple[str, str, Callable[[dict[str, Any], Config], dict[str, str]]]] = {
    "captioner": (f"{ADAPTER_FOLDER}/adapter_config.json", "adapter_model.safetensors", _adapter),
    "flowley": (f"{MODEL_FOLDER}/config.json", "model.safetensors", _network),
}
"""Of each kind: its settings in the output, its weights beside them, and what is changed in the settings."""


def _facts(kind: ModelKind, config: Config, done: Mapping[str, Output]) -> dict[str, Any]:
    """Facts for a card: training, examples and scores, from specs and manifests."""
    output = done[kind]
    manifest, spec = output.committed(), output.spec()
    facts: dict[str, Any] = {
        "fingerprint": output.fingerprint,
        "digest": manifest.digest,
        "examples": manifest.rows_out,
        "figures": manifest.figures,
        "training": spec["meaning"].get("training", {}),
        "scores": {},
        "preset": config.flowley.preset,
        "instruction": "",
    }
    if kind == "captioner":
        facts["instruction"] = (spec["meaning"].get("prompts") or {}).get("instruction", "")
    elif "scores" in done:
        facts["scores"] = done["scores"].committed().figures
        facts["scored"] = done["scores"].committed().rows_out
    return facts


def _card(
    kind: ModelKind, config: Config, facts: Mapping[str, Any], needs: Mapping[str, str], repository: str | None
) -> str:
    base = needs.get("captioner.model", "")
    matter: dict[str, Any] = {
        "license": config.publish.model_licence or "other",
        "language": ["en"],
        "library_name": {"captioner": "peft", "flowley": "flowley"}[kind],
        "tags": ["video-to-audio", "sound"] + ["audio-captioning"] * (kind == "captioner"),
    }
    if base:
        matter["base_model"] = base.partition("@")[0]
    return render(
        "model_card.md.jinja",
        front_matter=yaml.safe_dump(matter, sort_keys=False, allow_unicode=True),
        kind=kind,
        facts=facts,
        needs=needs,
        base=base.partition("@")[0],
        base_revision=base.partition("@")[2],
        licence=config.publish.model_licence,
        repository=repository or "path/to/this/folder",
    )
