"""Gate of a release: captions may not be worse than those that they replace, by the operator's rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.errors import UserError
from pipelines.publication.contents import Head, read_record
from pipelines.publication.dataset_repo import configuration_name
from pipelines.report.compare import Side, compare_sides, figure
from pipelines.run_config import Config
from soundcap.prompts import NoiseWarning, label_matches


def worse_than_published(
    named: str, overrides: Sequence[str], config: Config, head: Head | None, *, force: bool
) -> str:
    """Words on the measures in which a configuration's captions are worse than those that a place has, or "".

    Both are judged by the rules of the configuration and by the warnings of both: one that a new prompt leaves out was
    meant, and still is.

    Args:
        named, overrides: the configuration, as given.
        head: what is at the place; None: nothing. Without captions of this prompt version nothing is worse.
        force: what is not in this store is no error; the words say so.

    Raises:
        UserError: what is published is not in this store, so that nothing can be compared, or `publish.gate` names
            what no measure is.
    """
    record = {} if head is None else read_record(head, "captions")
    earlier = record.get("configurations", {}).get(configuration_name("captions", config.publish))
    now = Side.of(named, overrides)
    if earlier is None or not config.publish.gate or earlier["fingerprint"] == now.captions.fingerprint:
        return ""
    before = earlier["fingerprint"]
    try:
        then = Side.of(f"{named}@{before}", overrides)
    except UserError as error:
        if force:
            return f"comparison: captions {before} are not in this store"
        raise UserError(
            f"captions {before} are published, which this store has not, so the gate cannot compare them; --force "
            f"publishes all the same ({error})"
        ) from error
    card = compare_sides(then, now, [_warning(one) for one in earlier["judged_by"]])
    names = [one.name for one in card.comparisons]
    for pattern in config.publish.gate:
        if not any(label_matches(name, (pattern.casefold(),)) for name in names):
            raise UserError(f"publish.gate: {pattern!r} is no measure of these captions; they are {', '.join(names)}")
    patterns = tuple(pattern.casefold() for pattern in config.publish.gate)
    worse = [one for one in card.comparisons if one.verdict == "worse" and label_matches(one.name, patterns)]
    return ", ".join(f"{one.name} ({figure(one.name, one.a)} -> {figure(one.name, one.b)})" for one in worse)


def _warning(recorded: Mapping[str, Any]) -> NoiseWarning:
    """Warning of a published prompt, of which a record has what captions are judged by."""
    labels = recorded["labels"]
    return NoiseWarning(
        recorded["name"],
        text="",
        origin="a published prompt",
        labels=None if labels is None else tuple(labels),
        except_labels=tuple(recorded["except_labels"]),
        violations=tuple(recorded["violations"]),
    )
