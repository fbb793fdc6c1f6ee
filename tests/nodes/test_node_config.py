import re
import subprocess
import sys
from pathlib import Path

import pytest

from qb_cluster.nodes.node_config import NodeConfig, NodeConfigError, load_node_config
from qb_cluster.nodes.runtimes import installed_runtimes


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "node.toml"
    monkeypatch.setenv("QB_NODE_CONFIG", str(path))
    return path


def test_labels_and_interpreters_are_read(file):
    file.write_text(
        f'[labels]\nplace = "rack-3"\n"qb/board" = "pi5"\n'
        f'[environments]\ntflite = "{sys.executable}"\n'
    )
    read = load_node_config()
    assert read.labels == {"place": "rack-3", "qb/board": "pi5"}
    assert read.environments == {"tflite": Path(sys.executable)}


def test_no_file_is_no_configuration(tmp_path, monkeypatch):
    monkeypatch.delenv("QB_NODE_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    read = load_node_config()
    assert read == NodeConfig(tmp_path / ".config/quantbench/node.toml")
    assert dict(read.labels) == dict(read.environments) == {}


def test_a_file_that_was_named_must_exist(file):
    with pytest.raises(NodeConfigError, match=r"node\.toml: there is no such file.*QB_NODE_CONFIG"):
        load_node_config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[labels", "is no TOML"),
        ('[labels]\n"qb/boad" = "x"\n', "unknown key 'qb/boad'; did you mean 'qb/board'?"),
        ("[label]\n", "unknown key 'label'; known: labels, environments"),
        ("labels = 3", "'labels' is a table"),
        ("[labels]\nplace = 3", "labels.place is no text"),
        ('[labels]\nqb.board = "x"', "labels.qb is a table"),
        ('[labels]\n"a b" = "x"', "'a b' is no label"),
        ('[labels]\n"ray.io/x" = "x"', "'ray.io/x' is Ray's own"),
        ('[labels]\nplace = "rack 3"', "labels.place: 'rack 3' is no value"),
        ('[environments]\ntflite = "python3"', "environments.tflite: python3 is no absolute"),
        ('[environments]\ntflite = "/no/such"', "environments.tflite: /no/such does not exist"),
        ('[environments]\ntflite = "/"', "environments.tflite: / is a folder"),
        ('[environments]\ntflite = "{file}"', "cannot be executed"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name_and_key(file, text, message):
    file.write_text(text.replace("{file}", str(file)))
    with pytest.raises(NodeConfigError, match=re.escape(message)) as caught:
        load_node_config()
    assert str(caught.value).startswith(f"{file}: ")


def test_runtimes_of_the_owners_environments_count_and_win(file, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "own")], check=True
    )
    (site,) = tmp_path.glob("own/lib/python*/site-packages")
    for name, version in [("tflite_runtime", "2.14.0"), ("torch", "0.1")]:
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    file.write_text(f'[environments]\ntflite = "{tmp_path}/own/bin/python"\n')
    found = installed_runtimes(load_node_config())
    assert found["tflite-runtime"] == "2.14.0"
    assert found["torch"] == "0.1"
    assert "tflite-runtime" not in installed_runtimes(NodeConfig(file))


def test_a_program_that_is_no_python_is_refused(file):
    file.write_text('[environments]\ntflite = "/bin/false"\n')
    with pytest.raises(NodeConfigError, match="tflite: /bin/false is no Python 3"):
        installed_runtimes(load_node_config())
