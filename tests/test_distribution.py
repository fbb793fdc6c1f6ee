"""What a user gets who installs the wheel; it is built here, without a network."""

import tomllib
from email import message_from_bytes
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest
from hatchling.build import build_wheel

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PACKAGES = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The contents of its files, by their path in it."""
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # where the build hook looks for the project
        built = ZipFile(folder / build_wheel(str(folder)))
    with built:
        return {name: built.read(name) for name in built.namelist()}


@pytest.fixture(scope="module")
def dist_info(wheel):
    (folder,) = {name.partition("/")[0] for name in wheel if ".dist-info/" in name}
    return folder


@pytest.fixture(scope="module")
def metadata(wheel, dist_info):
    return message_from_bytes(wheel[f"{dist_info}/METADATA"])


def test_every_package_of_the_project_is_in_the_wheels_list():
    here = {
        path.parent for path in (*ROOT.glob("*/__init__.py"), *ROOT.glob("backends/*/__init__.py"))
    }
    assert {ROOT / package for package in PACKAGES} == here


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_whole_and_says_that_it_has_types(wheel, package):
    source = ROOT / package
    modules = {
        (PurePosixPath(source.name) / path.relative_to(source).as_posix()).as_posix()
        for path in source.rglob("*.py")
    }
    assert modules
    assert modules <= wheel.keys()
    assert f"{source.name}/py.typed" in wheel


def test_the_license_and_its_full_text_come_along(wheel, dist_info, metadata):
    text = wheel[f"{dist_info}/licenses/LICENSE"].decode()
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    # An index refuses a classifier beside the expression (PEP 639).
    assert not [name for name in metadata.get_all("Classifier") if name.startswith("License ::")]


def test_the_metadata_says_who_what_and_where(metadata):
    assert metadata["Author"] == "QuantBench cluster contributors"
    assert "quantization" in metadata["Keywords"].split(",")
    assert {"Typing :: Typed", "Topic :: System :: Benchmark"} <= {*metadata.get_all("Classifier")}
    urls = dict(entry.split(", ") for entry in metadata.get_all("Project-URL"))
    assert urls.keys() == {"Homepage", "Source", "Issues", "Changelog"}
    assert all(url.startswith(urls["Homepage"]) for url in urls.values())


def test_the_changelog_has_this_version_and_what_comes_next():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert PROJECT["urls"]["Changelog"].endswith("/CHANGELOG.md")
    headings = [line.split()[1] for line in text.splitlines() if line.startswith("## ")]
    assert headings[:2] == ["[Unreleased]", f"[{PROJECT['version']}]"]
    assert all(f"\n{heading}: {PROJECT['urls']['Homepage']}/" in text for heading in headings)
