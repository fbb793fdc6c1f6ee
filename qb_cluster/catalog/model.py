"""The Model Interface: what kind of thing a model callable returned, and model files.

A model in a spec is a registered name, an import path, or the path of a model file, relative to
the folder where qb runs.
"""

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


def names_file(target: str) -> bool:
    """Tell whether a model's target is the path of a file rather than a name or an import path.

    It is when it has a ``/``, or no ``:`` and the ending of a model file, or is the name of a
    SavedModel folder. The file need not exist.
    """
    if "/" in target or ":" in target:
        return "/" in target
    try:
        return file_kind(target) is not None
    except OSError:  # longer than a file's name can be
        return False


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
