"""What a model is told by: its class, or the name of its file."""

import pytest

from qb_cluster.catalog.model import MODEL_KINDS, file_kind, model_kind, names_file


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("net.onnx", "onnx"),
        ("nets/net.ONNX", "onnx"),
        ("net.tflite", "tflite"),
        ("net.keras", "keras"),
        ("net.pt2", "pt2"),
        ("net.pt", None),
        ("onnx", None),
        (".onnx", None),
    ],
)
def test_the_ending_of_a_file_says_its_kind(name, kind):
    assert file_kind(name) == kind


def test_a_folder_is_a_saved_model_if_it_holds_one(tmp_path):
    assert file_kind(tmp_path) is None
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    assert file_kind(tmp_path) == "saved_model"


@pytest.mark.parametrize(
    ("target", "is_file"),
    [
        ("nets/net.onnx", True),
        ("./net", True),
        ("/data/run:3/net.tflite", True),
        ("net.tflite", True),
        ("digits-cnn", False),
        ("package.module:net.onnx", False),
        ("x" * 5_000, False),
    ],
)
def test_a_path_is_told_from_a_name_and_from_an_import_path(target, is_file):
    assert names_file(target) == is_file


def test_a_saved_model_folder_may_be_named_without_a_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    assert not names_file("saved")
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"x")
    assert names_file("saved")


def class_of(module, name, *bases):
    return type(name, bases, {"__module__": module})


@pytest.mark.parametrize(
    ("base", "kind"),
    [
        (class_of("torch.nn.modules.module", "Module"), "torch"),
        (class_of("keras.src.models.model", "Model"), "keras"),
        (class_of("tf_keras.src.engine.training", "Model"), "keras"),
        (class_of("torchvision.models", "Module"), "object"),
        (class_of("keras.src.layers", "Layer"), "object"),
    ],
)
def test_a_model_of_a_users_class_is_what_its_base_is(base, kind):
    assert model_kind(class_of("users", "Net", base)()) == kind


def test_a_path_that_a_callable_returns_is_the_file_it_names(tmp_path):
    assert model_kind("net.onnx") == "onnx"
    assert model_kind(tmp_path / "net.tflite") == "tflite"
    assert model_kind(tmp_path) == "object"


def test_every_kind_that_can_be_told_is_a_kind():
    assert {"torch", "keras", "saved_model", "onnx", "tflite", "pt2", "object"} == set(MODEL_KINDS)
