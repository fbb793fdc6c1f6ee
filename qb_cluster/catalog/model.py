"""The Model Interface: what kind of thing a model callable returned, and model files."""

from pathlib import Path
from typing import Any, Final, Literal, get_args

ModelKind = Literal["torch", "keras", "saved_model", "onnx", "tflite", "pt2", "object"]
MODEL_KINDS: Final[tuple[str, ...]] = get_args(ModelKind)
_BY_ENDING: Final[dict[str, ModelKind]] = {
    ".keras": "keras",
    ".onnx": "onnx",
    ".tflite": "tflite",
    ".pt2": "pt2",
}


def file_kind(path: str | Path) -> ModelKind | None:
    """Give the kind of a model file by its name, or ``None`` if it is none.

    A SavedModel is a folder with ``saved_model.pb`` in it.
    """
    path = Path(path)
    if (path / "saved_model.pb").is_file():
        return "saved_model"
    return _BY_ENDING.get(path.suffix.lower())


def model_kind(model: Any) -> ModelKind:
    """Tell what a model is, without importing any framework.

    Args:
        model: what a model callable returned: a ``torch.nn.Module``, a Keras model, the path of
            a model file (str or Path), or anything else, which is an ``object``.
    """
    if isinstance(model, str | Path):
        return file_kind(model) or "object"
    for base in type(model).__mro__:
        framework = base.__module__.partition(".")[0]
        if framework == "torch" and base.__name__ == "Module":
            return "torch"
        if framework in {"keras", "tf_keras"} and base.__name__ == "Model":
            return "keras"
    return "object"
