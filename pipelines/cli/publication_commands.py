"""Commands around publications of `soundcap`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.cli.options import ConfigPath, Overrides, say, user_path
from pipelines.config_file import load_config
from pipelines.publication.publish import PARTS
from pipelines.publication.publish import publish as publish_parts


def publish(
    config: ConfigPath,
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", parser=user_path, help="a new folder, or an earlier publication's")
    ] = None,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="a repository of the Hugging Face Hub")] = None,
    what: Annotated[
        Literal["captions", "captioner", "flowley", "all"],
        typer.Option(help="all: weights in OWNER/NAME-captioner and -flowley, captions in OWNER/NAME"),
    ] = "captions",
    private: Annotated[bool, typer.Option("--private", help="a repository that is made stays private")] = False,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="of this version; else it gets a number")] = None,
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
