"""Misspelt import paths are found without an import; what only that would tell is not judged."""

import os
import sys

import pytest

from qb_cluster.catalog import plugins
from qb_cluster.errors import PlugInError

NETS = """
import json
from json import loads as parse
raise RuntimeError("nobody imports this")
WIDTH: int = 3
small, (medium, *rest) = 1, (2, 3)
try:
    import fast
except ImportError:
    fast = None
if WIDTH > 2:
    async def wide(): pass
with open(__file__) as file:
    class Net:
        def __getattr__(self, name): return vars(self)[name]
        def inner(self): pass
def net():
    global made
    made = 1
    hidden = 2
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a user's own, beside a module of his own."""
    (tmp_path / "user_zoo" / "deep").mkdir(parents=True)
    (tmp_path / "user_zoo" / "__init__.py").write_text("from .resnets import resnet18\n")
    (tmp_path / "user_zoo" / "resnets.py").write_text("def resnet18(): ...\n")
    (tmp_path / "user_zoo" / "deep" / "__init__.py").write_text("")
    (tmp_path / "user_nets.py").write_text(NETS)
    (tmp_path / "plain_folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    assert not {"user_zoo", "user_nets"} & sys.modules.keys()


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    "name",
    [
        *("net", "Net", "Net.inner", "wide", "WIDTH", "small", "medium", "rest", "fast", "file"),
        *("json", "json.loads", "parse", "made", "__doc__"),
    ],
)
def test_what_the_source_binds_is_there(name):
    plugins.check("model", f"user_nets:{name}")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("user_nets:nett", "user_nets.py has no 'nett'; did you mean 'user_nets:net'?"),
        ("user_nets:net1.x", "user_nets.py has no 'net1'; did you mean 'user_nets:net'?"),
        ("user_nets:zzz", "; it has Net, WIDTH, fast, file, json, made, medium, net, …"),
        ("user_nets:hidden", "user_nets.py has no 'hidden'"),
        ("user_nets:inner", "user_nets.py has no 'inner'"),
        ("user_net:net", "among the installed packages; did you mean 'user_nets:net'?"),
        ("user_zo.resnets:resnet18", "did you mean 'user_zoo.resnets:resnet18'?"),
        ("user_zoo.resnet:resnet18", "'resnet'; did you mean 'user_zoo.resnets:resnet18'?"),
        ("user_zoo.resnets:resnet81", "did you mean 'user_zoo.resnets:resnet18'?"),
        ("user_zoo.resnets.x:resnet18", "resnets.py has no module 'x'"),
        ("user_zoo.deep:net", "has no 'net'"),
        ("user_zoo:resnet8", "did you mean 'user_zoo:resnet18'?"),
    ],
)  # fmt: skip
def test_what_it_does_not_bind_is_told_with_what_was_meant(target, message):
    with pytest.raises(PlugInError) as caught:
        plugins.check("model", target)
    assert str(caught.value).startswith(f"model '{target}': ")
    assert message in str(caught.value)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    "target",
    ["user_zoo.resnets:resnet18", "user_zoo:resnet18", "user_zoo:resnets", "user_zoo:deep",
     "os.path:join", "math:hypot", "json:whatever", "plain_folder.sub:net", "plain_folder:net"],
)  # fmt: skip
def test_modules_names_of_modules_and_what_has_no_source_are_left_alone(target):
    plugins.check("metric", target)


@pytest.mark.parametrize(
    "source",
    [
        "from somewhere import *",
        "def __getattr__(name): return name",
        "__getattr__, __dir__ = lazy()",
        "globals()['net'] = 1",
        "vars().update(net=1)",
        "locals()['net'] = 1",
        "def fill():\n    exec('net = 1')",
        "import sys\nsetattr(sys.modules[__name__], 'net', 1)",
        "from sys import modules",
        "def broken(:",
        "\0",
    ],
)
def test_where_code_may_make_names_nothing_is_said(package, source):
    (package / "user_nets.py").write_text(source)
    plugins.check("model", "user_nets:net")


def test_a_module_that_was_changed_is_read_again(package):
    path = package / "user_nets.py"
    path.write_text("def one(): ...\n")
    plugins.check("model", "user_nets:one")
    path.write_text("def two(): ...\n")
    os.utime(path, ns=(0, 0))
    plugins.check("model", "user_nets:two")
    with pytest.raises(PlugInError, match="has no 'one'"):
        plugins.check("model", "user_nets:one")


def test_a_file_elsewhere_is_named_by_its_whole_path(package, monkeypatch):
    monkeypatch.chdir(package / "plain_folder")
    with pytest.raises(PlugInError) as caught:
        plugins.check("model", "user_nets:nett")
    assert f"{package / 'user_nets.py'} has no 'nett'" in str(caught.value)
