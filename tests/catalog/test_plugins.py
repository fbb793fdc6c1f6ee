import sys

import pytest

from qb_cluster.catalog import plugins
from qb_cluster.contracts import Ref
from qb_cluster.errors import PlugInError


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "user_plugins.py").write_text(
        "imported = True\n"
        "constant = 3\n"
        "def make(size=1):\n"
        "    return ['made', size]\n"
        "def broken():\n"
        "    raise OSError('no disk')\n"
    )
    (tmp_path / "unimportable.py").write_text("raise RuntimeError('bad day')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("user_plugins", "unimportable"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("backend", {"pytorch", "tflite", "onnxruntime"}),
        ("model", {"digits-cnn", "digits-mlp"}),
        ("dataset", {"digits"}),
        ("scheme", {"weight_only", "dynamic", "static"}),
        ("metric", {"accuracy"}),
    ],
)
def test_our_own_come_through_the_same_door_as_anybodys(kind, known):
    assert known <= set(plugins.registered(kind))


def test_a_misspelt_name_is_told_the_nearest_one():
    with pytest.raises(PlugInError, match="did you mean 'digits-cnn'"):
        plugins.check("model", "digit-cnn")


@pytest.mark.usefixtures("user_module")
def test_options_arrive_as_keyword_arguments():
    made = plugins.make("model", Ref("m", "user_plugins:make", '{"size": 4}'))
    assert made == ["made", 4]


@pytest.mark.usefixtures("user_module")
def test_checking_a_name_does_not_import_the_users_code():
    plugins.check("model", "user_plugins:make")
    assert "user_plugins" not in sys.modules


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("user_plugins:nothing", "cannot be imported"),
        ("user_plugins:constant", "not callable"),
        ("user_plugins:broken", "raised OSError: no disk"),
        ("unimportable:x", "RuntimeError: bad day"),
        ("no_such_module_anywhere:x", "no module 'no_such_module_anywhere'"),
        ("a b:c", "no import path"),
    ],
)
def test_what_cannot_be_made_says_why(target, message):
    with pytest.raises(PlugInError, match=message):
        plugins.make("model", Ref("m", target))


@pytest.fixture
def model_file(tmp_path, monkeypatch):
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "net.onnx").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "nets" / "net.onnx"


def test_a_model_file_is_made_into_its_absolute_path(model_file):
    assert plugins.make("model", Ref("m", "nets/net.onnx")) == model_file
    assert plugins.make("model", Ref("m", str(model_file))) == model_file


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nets/gone.onnx", "there is no model file 'nets/gone.onnx' in the folder where qb runs"),
        ("gone.tflite", "there is no model file 'gone.tflite'"),
        ("./notes.txt", "a model file is .onnx, .tflite, .keras, .pt2, or a SavedModel folder"),
        ("./nets", "'./nets' is a folder without saved_model.pb"),
        ("./" + "x" * 5_000, "cannot be looked up"),
    ],
)
def test_what_is_no_model_file_is_told_why(model_file, target, message):
    for refused in (lambda: plugins.check("model", target), lambda: plugins.find("model", target)):
        with pytest.raises(PlugInError, match=message):
            refused()


def test_only_models_are_files(model_file):
    with pytest.raises(PlugInError, match=r"unknown dataset 'nets/net\.onnx'"):
        plugins.check("dataset", "nets/net.onnx")
