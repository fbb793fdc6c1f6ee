import os
import shutil
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

import qb_cluster
from qb_cluster.catalog.arithmetic import ROOMS, arithmetic_digest, digest_of
from qb_cluster.dispatch.shipped_code import pack_code


@pytest.fixture
def package(tmp_path):
    """A copy of our package, elsewhere."""
    original = Path(qb_cluster.__file__).parent
    return shutil.copytree(original, tmp_path / "copy", ignore=lambda *_: ["__pycache__"])


def test_the_same_code_has_the_same_digest_wherever_it_is(package):
    assert digest_of(package) == digest_of(files("qb_cluster")) == arithmetic_digest()


@pytest.mark.parametrize("room", ["quantization", "evaluation", "worker", "contracts"])
def test_one_byte_of_the_arithmetic_changes_it(package, room):
    before = digest_of(package)
    sources = list((package / room).glob("*.py"))
    assert sources
    for file in sources:
        source = file.read_bytes()
        file.write_bytes(source[:-1] + b" ")
        assert digest_of(package) != before, file
        file.write_bytes(source)
    assert digest_of(package) == before


def test_a_file_that_comes_goes_or_gets_another_name_changes_it(package):
    before = digest_of(package)
    file = package / "quantization" / "affine.py"
    added = package / "quantization" / "deeper" / "more.py"
    added.parent.mkdir()
    added.write_text("")
    assert digest_of(package) != before
    added.unlink()
    assert digest_of(package) == before
    file.rename(file.with_name("renamed.py"))
    assert digest_of(package) != before


def test_neither_times_nor_bytecode_nor_other_code_changes_it(package):
    before = digest_of(package)
    for room in ROOMS:
        cached = package / room / "__pycache__"
        cached.mkdir(exist_ok=True)
        (cached / "affine.cpython-311.pyc").write_bytes(os.urandom(8))
        for file in (package / room).glob("*.py"):
            os.utime(file, (1, 1))
    (package / "catalog" / "model.py").write_text("other = True")
    assert digest_of(package) == before


def test_shipped_code_has_the_digest_of_the_folder_it_was_made_of(tmp_path):
    (tmp_path / "empty").mkdir()
    pack_code(tmp_path / "code.zip", tmp_path / "empty")
    with zipfile.ZipFile(tmp_path / "code.zip") as packed:
        packed.extractall(tmp_path / "there")
        assert digest_of(zipfile.Path(packed, "qb_cluster/")) == arithmetic_digest()
    assert digest_of(tmp_path / "there" / "qb_cluster") == arithmetic_digest()
