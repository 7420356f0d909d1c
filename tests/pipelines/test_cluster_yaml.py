"""ray_cluster.yaml is what `ray up` accepts, and what pipelines/submit.py and set-up rely on."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.config_file import load_config

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((PROJECT / "ray_cluster.yaml").read_text())
    return config


def test_follows_rays_schema(cluster: dict[str, Any]) -> None:
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text()
    jsonschema.validate(cluster, json.loads(schema))


def test_passes_the_checks_of_ray_up(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_worker_limits_fit(cluster: dict[str, Any]) -> None:
    workers = {name: kind for name, kind in cluster["available_node_types"].items() if name != "head"}
    assert all(0 <= kind["min_workers"] <= kind["max_workers"] for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) <= cluster["max_workers"], "some could never start"


def test_mounted_files_exist_and_are_what_setup_reads(cluster: dict[str, Any]) -> None:
    ours = {there: here for there, here in cluster["file_mounts"].items() if not here.startswith("~")}
    assert all((PROJECT / here).is_file() for here in ours.values()), ours
    setup = "\n".join(cluster["setup_commands"])
    for there in ours:
        assert Path(there).name in setup, f"{there} is sent but not used"


def test_every_constraint_that_setup_drops_is_there_to_drop(cluster: dict[str, Any]) -> None:
    dropped = re.findall(r"grep -v '\^([a-z-]+)=='", "\n".join(cluster["setup_commands"]))
    names = {line.partition("==")[0] for line in (PROJECT / "constraints.txt").read_text().splitlines()}
    assert dropped and set(dropped) <= names


def test_no_node_resolves_an_environment_of_its_own(cluster: dict[str, Any]) -> None:
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = next(command for command in cluster[name] if "ray start" in command)
        assert "RAY_ENABLE_UV_RUN_RUNTIME_ENV=0" in start and "RAY_AUTH_MODE=token" in start, name


def test_no_account_is_named(cluster: dict[str, Any]) -> None:
    text = (PROJECT / "ray_cluster.yaml").read_text()
    invented = re.findall(r"\b(?:ami|subnet|sg|vpc)-[0-9a-f]{8,}\b|\b\d{12}\b|arn:aws\S+", text)
    assert not invented, "ids of somebody's account; the operator fills these in"


CPUS = {"m7i.2xlarge": 8, "c7i.4xlarge": 16, "g6e.4xlarge": 16}
GPUS = {"g6e.4xlarge": 1}


def test_the_cluster_can_hold_what_the_configuration_for_vggsound_asks_for(cluster: dict[str, Any]) -> None:
    """All workers of each stage find a place at once, each on one node."""
    kinds = [
        (kind.get("max_workers", 1), CPUS[instance], GPUS.get(instance, 0))
        for kind in cluster["available_node_types"].values()
        for instance in [kind["node_config"]["InstanceType"]]
    ]
    config = load_config(str(PROJECT / "configs/vggsound.yaml"))
    for stage in ("clips", "captions", "captioner", "silent_captions", "features", "flowley", "samples"):
        execution = getattr(config, stage).execution
        cpus, gpus = execution.cpus_per_worker, getattr(execution, "gpus_per_worker", float(stage in TRAINING))
        places = sum(
            count * min(int(node_cpus // cpus), int(node_gpus // gpus) if gpus else 10**6)
            for count, node_cpus, node_gpus in kinds
        )
        assert execution.workers <= places, f"{stage}: {execution.workers} workers, {places} places"


TRAINING = ("captioner", "flowley")
