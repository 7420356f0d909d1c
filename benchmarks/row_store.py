"""A store of many rows in which every stage is done, without media: `python -m benchmarks.row_store FOLDER CLIPS`."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from pipelines.config_file import load_config
from pipelines.engine.ledger import Ledger
from pipelines.engine.plan import resolve
from pipelines.engine.row_stage import RowSet, RowStage
from pipelines.engine.runner import commit
from pipelines.engine.store import SHA256_SUFFIX, Output, mark_latest, open_store
from pipelines.stages import wanted_stages

ROOT = Path(__file__).parents[1]
PART_ROWS = 256
LABELS = 309
"""Labels of VGGSound."""
EMBEDDING_DIMS = 129
COMMIT = "ab" * 20


def main() -> None:
    """Makes source, configuration and store in a folder."""
    folder, clips = Path(sys.argv[1]), int(sys.argv[2])
    make_source(folder, clips)
    make_store(folder)


def make_source(folder: Path, clips: int) -> None:
    """Writes files named as VGGSound's clips, each of other bytes, their CSV, a configuration and an edited prompt."""
    videos = folder / "videos"
    videos.mkdir()
    with (folder / "vggsound.csv").open("w") as csv:
        for number in range(clips):
            name, start_s = f"v{number:010d}", number % 500
            (videos / f"{name}_{start_s:06d}.mp4").write_text(name)
            split = "test" if number % 13 == 0 else "train"
            csv.write(f'{name},{start_s},"label number {number % LABELS}",{split}\n')
    for weights in ("adapter/adapter_config.json", "adapter/adapter_model.safetensors"):
        (folder / weights).parent.mkdir(exist_ok=True)
        (folder / weights).write_text('{"r": 1, "lora_alpha": 1, "target_modules": [], "peft_type": "LORA"}')
    for weights in ("flowley/config.json", "flowley/model.safetensors"):
        (folder / weights).parent.mkdir(exist_ok=True)
        (folder / weights).write_text("{}")
    warnings = yaml.safe_load((ROOT / "prompts/warnings.yaml").read_text())
    warnings["warnings"][0]["text"] += " Listen well."
    (folder / "edited.yaml").write_text(yaml.safe_dump(warnings))
    text = (ROOT / "configs/vggsound.yaml").read_text()
    config = yaml.safe_load(text.replace("revision: main", f"revision: {COMMIT}"))  # which nobody asks the hub for
    config["root"] = str(folder / "store")
    config["source"] = {"folder": str(folder / "videos"), "table": str(folder / "vggsound.csv")}
    config["captioner"]["adapter"] = str(folder / "adapter")
    config["flowley"]["checkpoint"] = str(folder / "flowley")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def make_store(folder: Path) -> None:
    """Runs all stages on made-up values, written to the ledgers in parts as workers would."""
    config = load_config(str(folder / "config.yaml"))
    storage = open_store(config.root, write=True)
    done: dict[str, Output] = {}
    for stage in wanted_stages(config):
        resolved = resolve(stage, config, storage, done, to_run=True, say=_say_nothing)
        assert not isinstance(resolved, str)
        if isinstance(stage, RowStage):
            for one in stage.rows(resolved.context).sets:
                _fill(Ledger(storage, one.ledger, one.values), one)
        commit(resolved, stage.work(resolved.context).make(), seconds=0.0)
        mark_latest(storage, stage.name, resolved.context.output.fingerprint)
        done[stage.name] = resolved.context.output


def _fill(ledger: Ledger, rows: RowSet) -> None:
    """Writes made-up rows, and empty files in the places that they name."""
    chance, root = random.Random(ledger.name), Path(ledger.storage.path())
    ids, keys = rows.tasks.column(0).to_pylist(), rows.keys.to_pylist()
    for start in range(0, len(ids), PART_ROWS):
        part = slice(start, start + PART_ROWS)
        shared = f"features/parts/{ledger.name}-{start}"
        made = [_made_up(rows.values, chance, shared) for _ in ids[part]]
        for name in {row[column] for row in made for column in row if f"{column}{SHA256_SUFFIX}" in row}:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        ledger.write(keys[part], ids[part], made)
    ledger.settle()


def _made_up(values: pa.Schema, chance: random.Random, shared: str) -> dict[str, Any]:
    """Row of a ledger: captions of some 100 characters, numbers, names of files; feature files are `shared`."""
    row: dict[str, Any] = {}
    for field in values:
        if pa.types.is_boolean(field.type):
            row[field.name] = True
        elif pa.types.is_integer(field.type) or pa.types.is_floating(field.type):
            row[field.name] = chance.randrange(1, 9)
        elif pa.types.is_list(field.type):
            row[field.name] = [chance.random() for _ in range(EMBEDDING_DIMS)]
        elif field.name == "caption":
            words = ("".join(chance.choices("abdegiklmnoprstu", k=5)) for _ in range(14))
            row[field.name] = f"a bell rings, {' '.join(words)}"  # curation keeps it
        elif field.name.endswith(SHA256_SUFFIX):
            row[field.name] = chance.randbytes(32).hex()
        elif field.name.endswith("_file"):
            row[field.name] = shared
        else:
            name = chance.randbytes(8).hex()
            row[field.name] = f"media/{name[:2]}/{name}"
    return row


def _say_nothing(line: str) -> None:
    pass


if __name__ == "__main__":
    main()
