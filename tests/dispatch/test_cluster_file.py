"""`cluster.yaml` is an ordinary file of Ray's cluster launcher."""

import shlex
from pathlib import Path

import pytest
from ruamel.yaml import YAML

FILE = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture(scope="module")
def config():
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(YAML(typ="safe").load(FILE))
    validate_config(prepared)
    return prepared


def test_ray_takes_it_and_counts_its_workers(config):
    assert config["max_workers"] == len(config["provider"]["worker_ips"]) == 3


@pytest.mark.parametrize("part", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_machine_starts_with_what_it_says_of_itself_or_not_at_all(config, part):
    *_, start = config[part]
    described, _, started = start.partition(" && ")
    assert described == "node=$(qb node)"
    words = shlex.split(started)
    assert words[:2] == ["ray", "start"]
    assert words[-1] == "$node"


def test_workers_join_the_head_at_its_port(config):
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert "--port=6379" in head
    assert "--address=$RAY_HEAD_IP:6379" in worker
