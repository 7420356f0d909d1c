"""Commands around publications of `soundcap`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.cli.options import ConfigPath, Overrides, say, user_path
from pipelines.cli.running import MaxGpuHours, MaxUsd, Yes, execute, within
from pipelines.commands.forecast import Budget
from pipelines.config_file import load_config
from pipelines.errors import UserError
from pipelines.publication.export import ExportOptions, Names, Source
from pipelines.publication.export import export as export_captions
from pipelines.publication.export_formats import FORMATS, SHARD_GB, SHARD_SAMPLES
from pipelines.publication.forget import forget as forget_videos
from pipelines.publication.gate import worse_than_published
from pipelines.publication.publish import PARTS, place_of
from pipelines.publication.publish import publish as publish_parts
from pipelines.publication.token_limits import OnLong

To = Annotated[
    Path | None, typer.Option(metavar="DIR", parser=user_path, help="a new folder, or an earlier publication's")
]
Push = Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="a repository of the Hugging Face Hub")]
Private = Annotated[bool, typer.Option("--private", help="a repository that is made stays private")]
Tag = Annotated[str | None, typer.Option(metavar="TAG", help="of this version; else it gets a number")]
Parts = Annotated[
    Literal["captions", "captioner", "flowley", "all"],
    typer.Option(help="all: weights in OWNER/NAME-captioner and -flowley, captions in OWNER/NAME"),
]


def publish(
    config: ConfigPath,
    to: To = None,
    push: Push = None,
    what: Parts = "captions",
    private: Private = False,
    tag: Tag = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would travel; write nothing")] = False,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Publish captions (Parquet and a card; never media) and trained models, to a folder or to the Hub."""
    publish_parts(
        load_config(config, overrides),
        what=PARTS if what == "all" else [what],
        to=to,
        push=push,
        private=private,
        tag=tag,
        dry_run=dry_run,
        say=say,
    )


def release(
    config: ConfigPath,
    to: To = None,
    push: Push = None,
    what: Parts = "all",
    private: Private = False,
    tag: Tag = None,
    force: Annotated[bool, typer.Option("--force", help="publish although the gate says no; it is recorded")] = False,
    overrides: Overrides = [],  # noqa: B006
    max_gpu_hours: MaxGpuHours = None,
    max_usd: MaxUsd = None,
    yes: Yes = False,
) -> None:
    """Run what is missing, and publish it unless the captions are worse than those that they replace."""
    loaded = load_config(config, overrides)
    parts = PARTS if what == "all" else (what,)
    place = place_of("captions", parts, to, push, loaded.root, say) if "captions" in parts else None
    until = {"captions": "curation", "captioner": "captioner"}.get(what)
    expected = within(Budget(max_gpu_hours, max_usd), loaded, until, retry_failed=False, yes=yes)
    execute(loaded, until=until, expected=expected)
    worse = "" if place is None else worse_than_published(config, overrides, loaded, place.head(), force=force)
    if worse and not force:
        where = place.name if place is not None else ""
        raise UserError(
            f"the captions are worse than those at {where} in {worse}; nothing was published. `soundcap compare` shows "
            "it, publish.gate is the rule, and --force publishes all the same"
        )
    note = f"published although worse in {worse}" if worse else ""
    publish_parts(loaded, what=parts, to=to, push=push, private=private, tag=tag, note=note, say=say)


def export(
    config: ConfigPath,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help=f"one of {', '.join(FORMATS)}")],
    to: Annotated[
        Path, typer.Option(metavar="DIR", parser=user_path, help="a new folder, or an earlier export's of this format")
    ],
    source: Annotated[Source, typer.Option(help="stage whose captions are exported")] = "captions",
    names: Annotated[
        Names, typer.Option(help="call videos as the source's files, or as the store's clips, by their ids")
    ] = "source",
    media_root: Annotated[
        str, typer.Option(metavar="PATH", help="what paths of videos begin with; else they are relative")
    ] = "",
    on_long: Annotated[OnLong, typer.Option(help="captions beyond the target's token limit")] = "warn",
    with_media: Annotated[
        bool, typer.Option("--with-media", help="webdataset: the normalised clips too; only with the rights to them")
    ] = False,
    shard_samples: Annotated[int, typer.Option(min=1, help="webdataset: most samples of a shard")] = SHARD_SAMPLES,
    shard_gb: Annotated[float, typer.Option(min=0.001, help="webdataset: most GB of a shard")] = SHARD_GB,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Write captions as other projects' loaders read them: tables, JSON lines, or tar shards."""
    options = ExportOptions(source, names, media_root, on_long, with_media, shard_samples, shard_gb)
    export_captions(load_config(config, overrides), form, to, options, say=say)


def forget(
    config: ConfigPath,
    videos: Annotated[
        list[str],
        typer.Argument(metavar="VIDEO_ID...", help="as the source has them; -- before one that begins with -"),
    ],
    rewrite_history: Annotated[
        bool, typer.Option("--rewrite-history", help="delete tags and commits on the Hub that hold them")
    ] = False,
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Remove videos from the store for good, keep them out of it, and say which publications still hold them."""
    forget_videos(load_config(config, overrides), videos, rewrite_history=rewrite_history, say=say)
