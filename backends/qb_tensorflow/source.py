"""What a model callable may give, turned into the float artifact."""

from pathlib import Path
from typing import Any

from qb_cluster.catalog.model import model_kind
from qb_cluster.contracts import Artifact, LoadModel
from qb_cluster.errors import PlugInError, UnsupportedError
from qb_tensorflow import keras_file, saved_model
from qb_tensorflow.framework import tensorflow


def pack(load: LoadModel) -> Artifact:
    """Make the float artifact.

    A Keras model is written, read back and written again: that tells whether it can travel,
    and leaves its optimizer behind.

    Raises:
        PlugInError: the model is of no kind that TensorFlow runs, or damaged.
        UnsupportedError: it holds code.
    """
    tensorflow()  # before the model's author imports it, so that threads are still free
    given = load()
    match model_kind(given):
        case "keras":
            model = _read(given) if isinstance(given, str | Path) else _travelled(given)
            return Artifact(keras_file.dump(model), keras_file.FORMAT, keras_file.facts(model))
        case "saved_model":
            facts = saved_model.facts(saved_model.load(Path(given)))
            return Artifact(saved_model.pack(Path(given)), saved_model.FORMAT, facts)
    kind = type(given)
    raise PlugInError(
        "the tensorflow backend runs a Keras model, a .keras file or a SavedModel folder, and the "
        f"model is a {kind.__module__}.{kind.__qualname__}; return one of these from the model "
        "callable, or leave tensorflow out of the backends of this model"
    )


def _travelled(model: Any) -> Any:
    return keras_file.load(keras_file.dump(model))


def _read(path: str | Path) -> Any:
    try:
        return keras_file.load(Path(path).read_bytes())
    except OSError as error:
        raise PlugInError(f"the Keras model cannot be read: {error}") from error
    except (PlugInError, UnsupportedError) as error:
        raise type(error)(f"{path}: {error}") from error
