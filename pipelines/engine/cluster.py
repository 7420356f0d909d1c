"""Ray cluster: connection, and what it could ever give to a stage's workers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.errors import RunError, UserError, one_line

SOCKET_FOLDER_BYTES = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""Length of a folder's name with which Ray's sockets keep to what an address of one may have."""

BOOTSTRAP_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""File in which `ray up` leaves the cluster's limits on its head."""


def ensure_ray() -> None:
    """Connects to the cluster named by RAY_ADDRESS, else starts one on this machine; once per process.

    Raises UserError if no cluster answers, RunError if Ray does not start.
    """
    # Workers use this very environment; resolving it again on each of them saturates a cluster.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Ray assigns the GPUs; workers that reserve none must still see devices they share.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray would run workers at nice 15: beside one ordinary process they would hardly get a core.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Every failure is handled here; Ray would also print those of batches that a failed run abandons.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    import ray  # takes over a second, which `plan` saves

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "local")
        _check_answers(address)
        if address == "local" and (fault := local_ray_fault()):
            raise UserError(fault)
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray raises plain ones, as when a process of its own dies while it starts
            raise RunError(f"Ray does not start here: {one_line(error)}; run the same command again") from error


def local_ray_fault() -> str:
    """Fault of this machine that keeps Ray from starting, with the remedy; empty if none is known."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(name, "/tmp")
    remedy = "export RAY_TMPDIR=/tmp, or another short one"
    if not folder.isascii():
        return f"{name}: got {folder!r}, wanted a folder with a plain ASCII name for Ray's sockets; {remedy}"
    if len(folder) > SOCKET_FOLDER_BYTES:
        return (
            f"{name}: got {folder!r} of {len(folder)} bytes, wanted at most {SOCKET_FOLDER_BYTES} for Ray's sockets; "
            f"{remedy}"
        )
    kept = Path("~/.ray").expanduser()
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return (
            f"HOME: {kept} cannot be made ({error.strerror}), where Ray keeps its token; export HOME to another folder"
        )
    return ""


def _check_answers(address: str) -> None:
    """Raises UserError within seconds if no cluster answers; Ray itself would wait for minutes."""
    if "://" in address and not address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS: got {address!r}, wanted the cluster's host and port, like 10.0.0.1:6379; for a dashboard's "
            "address use `soundcap submit`"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()) or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"RAY_ADDRESS: no answer from {address} ({error}); start the cluster, or unset it to run on this machine"
        ) from error


def workers_that_fit(wanted: int, cpus: float, gpus: float, key: str) -> int:
    """Number of the wanted workers that the cluster could ever hold at once.

    Args:
        wanted: workers.
        cpus, gpus: what each of them reserves, on one node.
        key: configuration section that says so, for the message.

    Raises:
        UserError: no node, running or to be started by the autoscaler, could hold even one.
    """
    needs = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}
    if not needs or "KUBERAY_GEN_RAY_START_CMD" in os.environ:  # KubeRay does not tell what it could start
        return wanted
    nodes = list(_nodes())
    fit = sum(count * int(min(node.get(name, 0) / amount for name, amount in needs.items())) for node, count in nodes)
    if fit == 0:
        largest = {name: max((node.get(name, 0) for node, _ in nodes), default=0) for name in needs}
        raise UserError(
            f"{key}: one worker wants {_words(needs)}, and no node of the cluster has as many (at most "
            f"{_words(largest)}); lower {key}.cpus_per_worker or its GPUs, or add such a node"
        )
    return min(wanted, fit)


def check_alive() -> None:
    """Raises RunError if this process's own Ray node is gone; Ray itself would wait for ever."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    if not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == own):
        raise RunError("Ray's process on this machine is gone; run the same command again")


def _nodes() -> Iterator[tuple[Mapping[str, Any], int]]:
    """Resources and number of the nodes of each kind: running ones, and those that the autoscaler may add."""
    import ray
    from ray._private.state import state

    live = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    yield from ((resources, 1) for resources in live)
    config = state.get_cluster_config()
    if config is not None:
        yield from ((dict(group.resources), group.max_count) for group in config.node_group_configs)
    elif BOOTSTRAP_CONFIG.expanduser().exists():
        kinds = yaml.safe_load(BOOTSTRAP_CONFIG.expanduser().read_text())["available_node_types"]
        yield from ((kind.get("resources", {}), kind.get("max_workers", 0)) for kind in kinds.values())


def _words(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}s" for name, amount in resources.items())
