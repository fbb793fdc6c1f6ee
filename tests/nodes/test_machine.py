import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from qb_cluster.nodes import environment, machine
from qb_cluster.nodes.machine import describe_machine

PI = b"Raspberry Pi 5 Model B Rev 1.0\0"


def write(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_an_environment_says_all_that_the_machine_is():
    here = describe_machine()
    assert here.items() <= environment.describe(()).items()
    assert here["memory_bytes"] == psutil.virtual_memory().total
    assert set(here) == {
        "host", "os", "arch", "cpu_model", "cpu_features", "cores", "memory_bytes", "governor",
        "board",
    }  # fmt: skip


def test_the_file_alone_tells_the_same_on_a_board_with_nothing_installed(tmp_path):
    shutil.copy(machine.__file__, tmp_path / "machine.py")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}]\n"
        "import json, machine; print(json.dumps(machine.describe_machine()))"
    )
    alone = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(alone.stdout) == describe_machine()


def test_the_file_has_the_syntax_of_python_3_8():
    text = Path(machine.__file__).read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 8))


def test_a_board_is_known_by_its_device_tree(tmp_path):
    write(tmp_path, "proc/device-tree/model", PI)
    write(tmp_path, "sys/class/dmi/id/product_name", b"another\n")
    write(tmp_path, "proc/meminfo", b"MemTotal:        8140000 kB\nMemFree: 1 kB\n")
    write(
        tmp_path,
        "proc/cpuinfo",
        b"processor\t: 0\nFeatures\t: fp asimd asimddp\n\nprocessor\t: 1\nFeatures\t: sve\n",
    )
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", b"ondemand\n")
    found = describe_machine(str(tmp_path))
    assert found["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert found["memory_bytes"] == 8_140_000 * 1024
    assert found["cpu_features"] == ["asimd", "asimddp"]
    assert found["governor"] == "ondemand"


@pytest.mark.parametrize(
    ("product", "board"),
    [
        (b"PowerEdge R750\n", "PowerEdge R750"),
        (b"To Be Filled By O.E.M.\n", None),
        (b"\n", None),
        (None, None),
    ],
)
def test_a_pc_is_known_by_its_product_unless_its_maker_left_that_open(tmp_path, product, board):
    if product is not None:
        write(tmp_path, "sys/class/dmi/id/product_name", product)
    assert describe_machine(str(tmp_path))["board"] == board


def test_without_proc_only_what_the_system_calls_tell_is_known(tmp_path):
    found = describe_machine(str(tmp_path))
    assert found["memory_bytes"] > 2**20
    assert found["governor"] is None
    assert found["cpu_features"] == []
