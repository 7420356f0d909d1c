"""Content digests: equal values have equal digests on every machine.

A digest must never depend on a path, a region, a worker count or an object's default repr. Anything but plain
data is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

FINGERPRINT_LENGTH = 12


def canonical(value: Any, where: str = "value") -> Any:
    """Canonical form of `value` as plain JSON data.

    Raises:
        TypeError: anything but None, bool, int, finite float, str, lists, tuples and str-keyed mappings of these;
            `where` names the offender.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{where}: got {value}, wanted a finite number")
        return value
    if isinstance(value, list | tuple):
        return [canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: got the key {key!r}, wanted text keys only")
        return {key: canonical(item, f"{where}.{key}") for key, item in value.items()}
    raise TypeError(
        f"{where}: got a {type(value).__name__}, which has no canonical form; wanted None, bool, int, float, "
        "str, list or dict. Convert it to plain data first."
    )


def digest(value: Any) -> str:
    """SHA-256, in hex, of the canonical JSON of `value`."""
    text = json.dumps(canonical(value), ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def table_digest(table: pa.Table) -> str:
    """SHA-256, in hex, of a table's names and values, the same however they are stored."""
    whole = hashlib.sha256()
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = column.to_pylist()
        plain = [value.hex() for value in values] if values and isinstance(values[0], bytes) else values
        whole.update(json.dumps([name, plain], ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return whole.hexdigest()


def stage_fingerprint(stage: str, meaning: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Fingerprint of a stage output, from its stage, meaning and its inputs' digests."""
    return digest({"stage": stage, "meaning": meaning, "inputs": inputs})[:FINGERPRINT_LENGTH]


def file_sha256(path: Path) -> str:
    """SHA-256, in hex, of a local file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """Digest of a local folder: relative names and bytes of all files in it, but hidden ones and hidden folders'."""
    files = {f.relative_to(folder): f for f in sorted(folder.rglob("*")) if f.is_file()}
    seen = {name: f for name, f in files.items() if not any(part.startswith(".") for part in name.parts)}
    return digest([[name.as_posix(), file_sha256(f)] for name, f in seen.items()])
