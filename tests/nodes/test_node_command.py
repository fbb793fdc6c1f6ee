import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


@pytest.fixture
def shell(tmp_path):
    def run(command, **env):
        inherited = {key: value for key, value in os.environ.items() if key != "QB_NODE_CONFIG"}
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=inherited | {"PATH": path, "HOME": str(tmp_path)} | env,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_ray_start_takes_what_bash_makes_of_the_command(shell, tmp_path):
    from ray._private.label_utils import parse_node_labels_string
    from ray.scripts.scripts import start

    (tmp_path / "--labels=x").touch()  # file patterns in the output would find it
    # Words as bash splits them, each on a line.
    printed = shell("printf '%s\\n' $(qb node)")
    assert printed.returncode == 0, printed.stderr
    assert printed.stderr == ""
    with start.make_context("start", [*printed.stdout.splitlines(), "--head"]) as context:
        given = context.params
    told = json.loads(shell("qb node --json").stdout)
    assert given["num_cpus"] == told["num_cpus"] >= 1
    assert given["num_gpus"] == told["num_gpus"] == len(told["accelerators"])
    assert parse_node_labels_string(given["labels"]) == told["labels"]
    assert json.loads(given["resources"]) == told["resources"]
    assert told["resources"]["qb_lock"] == 1
    assert told["labels"]["qb/arch"] == os.uname().machine


def test_a_wrong_file_of_the_owner_prints_no_arguments(shell, tmp_path):
    (tmp_path / "node.toml").write_text("[lables]\n")
    ended = shell("qb node", QB_NODE_CONFIG=str(tmp_path / "node.toml"))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert "unknown key 'lables'" in ended.stderr
