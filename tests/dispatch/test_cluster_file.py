"""The files that start clusters: `cluster.yaml`, and those in docs/clusters.md."""

import json
import re
import shlex
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clusters.md").read_text()
EXAMPLES = [
    YAML(typ="safe").load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
]
OWN = YAML(typ="safe").load(ROOT / "cluster.yaml")
(CLOUD,) = (example for example in EXAMPLES if "cluster_name" in example)
(KUBERNETES,) = (example for example in EXAMPLES if example.get("kind") == "RayCluster")
CONFIGS = pytest.mark.parametrize("config", [OWN, CLOUD], ids=["own", "cloud"])


@pytest.fixture(scope="module")
def prepared():
    from ray.autoscaler._private.util import prepare_config, validate_config

    def prepare(config):
        made = prepare_config(config)
        validate_config(made)
        return made

    return prepare


def test_ray_takes_them_and_counts_their_workers(prepared):
    own, cloud = prepared(OWN), prepared(CLOUD)
    assert own["max_workers"] == len(own["provider"]["worker_ips"]) == 3
    wanted = [kind["min_workers"] for kind in cloud["available_node_types"].values()]
    assert cloud["max_workers"] == sum(wanted) == 3


@CONFIGS
@pytest.mark.parametrize("part", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_every_machine_asks_for_a_token_and_says_what_it_is_or_does_not_start(config, part):
    *_, start = config[part]
    described, _, started = start.partition(" && ")
    exported, _, asked = described.partition("; ")
    assert asked == "node=$(qb node)"
    settings = dict(setting.split("=") for setting in exported.removeprefix("export ").split())
    assert settings["RAY_AUTH_MODE"] == "token"
    assert settings["RAY_worker_niceness"] == "0"
    words = shlex.split(started)
    assert words[:2] == ["ray", "start"]
    assert words[-1] == "$node"


@CONFIGS
def test_workers_join_the_head_at_its_port(config):
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert "--port=6379" in head
    assert "--address=$RAY_HEAD_IP:6379" in worker


@pytest.mark.parametrize(
    "devices", [example["devices"] for example in EXAMPLES if "devices" in example]
)
def test_the_devices_of_the_page_are_those_of_a_spec(load, devices):
    spec = {
        "sweep": "page", "models": ["digits-cnn"], "datasets": ["digits"], "schemes": ["static"],
        "bits": ["w8a8"], "backends": ["tflite"], "devices": devices,
    }  # fmt: skip
    loaded = load(json.dumps(spec)).devices
    assert [device.name for device in loaded] == [device["name"] for device in devices]


def test_pods_start_ray_as_kuberay_says_and_what_the_node_says_of_itself_wins():
    from ray.scripts.scripts import start

    groups = [KUBERNETES["spec"]["headGroupSpec"], *KUBERNETES["spec"]["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        (line,) = container["args"]
        assert line.endswith("; node=$(qb node) && $KUBERAY_GEN_RAY_START_CMD $node")
        assert container["resources"]["requests"] == container["resources"]["limits"]
    generated = ["--block", "--num-cpus=4", "--num-gpus=0", "--metrics-export-port=8080"]
    own = ["--num-cpus=2", "--num-gpus=1", "--labels=qb/arch=x86_64"]
    with start.make_context("start", [*generated, *own]) as context:
        assert (context.params["num_cpus"], context.params["num_gpus"]) == (2, 1)
        assert context.params["labels"] == "qb/arch=x86_64"
