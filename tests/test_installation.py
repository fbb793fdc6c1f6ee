"""The install line works from wherever a distribution was installed."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from qb_cluster.installation import TORCH, install_line, install_lines

ROOT = Path(__file__).parents[1]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a distribution called `stranger` that says where it is from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: str(Path(sys.executable).parent / name))

    def install(origin):
        info = tmp_path / "stranger-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
        if origin is not None:
            (info / "direct_url.json").write_text(origin)

    return install


def test_a_checkout_is_named_by_its_folder_and_stays_editable(installed, tmp_path):
    folder = tmp_path / "a checkout"
    folder.mkdir()
    installed(json.dumps({"url": folder.as_uri(), "dir_info": {"editable": True}}))
    assert install_line("far", name="stranger") == f'pip install -e "{folder}[far]"'


def test_a_folder_that_was_installed_as_it_was_is_so_again(installed, tmp_path):
    installed(json.dumps({"url": tmp_path.as_uri(), "dir_info": {}}))
    assert install_line("far", "ssh", name="stranger") == f'pip install "{tmp_path}[far,ssh]"'


@pytest.mark.parametrize(
    ("origin", "requirement"),
    [
        (None, "stranger[far]"),
        ("not json", "stranger[far]"),
        ('{"url": "file:///gone/for/good", "dir_info": {"editable": true}}', "stranger[far]"),
        (
            '{"url": "https://host/s-1.0-py3-none-any.whl", "archive_info": {}}',
            "stranger[far] @ https://host/s-1.0-py3-none-any.whl",
        ),
        (
            '{"url": "https://host/s", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
            "stranger[far] @ git+https://host/s@abc",
        ),
    ],
)
def test_all_else_is_named_by_its_name_and_where_it_is_from(installed, origin, requirement):
    installed(origin)
    assert install_line("far", name="stranger") == f'pip install "{requirement}"'


def test_a_pip_of_another_python_is_not_meant(installed, monkeypatch):
    installed(None)
    monkeypatch.setattr(shutil, "which", lambda name: "/elsewhere/bin/pip")
    assert install_line("far", name="stranger").startswith(f"{sys.executable} -m pip install ")


def test_what_brings_torch_pins_the_version_of_the_constraints(installed):
    assert install_line("onnxruntime").endswith(f'[onnxruntime]" {TORCH}')
    assert not install_line("digits").endswith(TORCH)
    assert TORCH in (ROOT / "constraints.txt").read_text().split()
    assert TORCH in (ROOT / "Makefile").read_text()


def test_extras_of_one_distribution_are_one_command(installed):
    installed(None)
    needs = [("qb-cluster", "pytorch"), ("stranger", "far"), ("qb-cluster", "tflite")]
    ours, theirs = install_lines(needs)
    assert "[pytorch,tflite]" in ours
    assert theirs == 'pip install "stranger[far]"'
