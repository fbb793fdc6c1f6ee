"""Ready-made models: a Keras CNN and an MLP for the dataset ``digits``.

They are trained when first asked for, in a process of its own (``digits_training``).
"""

import inspect
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from qb_cluster.catalog import model_cache
from qb_cluster.catalog.digits import training_split
from qb_cluster.errors import PlugInError

_LAST_CHARACTERS = 2000


def digits_keras_cnn(*, seed: int = 0, epochs: int = 30, channels: int = 16) -> Any:
    """Give a CNN of two convolutions and two dense layers, 38,282 parameters.

    Args:
        seed: of the initial weights and of the order of examples.
        epochs: passes over the 1,000 training examples.
        channels: of the first convolution; the second has twice as many.

    Returns:
        A ``keras.Model``; takes ``(n, 1, 8, 8)``, returns logits ``(n, 10)``, both float32.

    Raises:
        PlugInError: scikit-learn is not installed, or training failed.
    """
    return _trained({"net": "cnn", "seed": seed, "epochs": epochs, "width": channels})


def digits_keras_mlp(*, seed: int = 0, epochs: int = 30, hidden: int = 128) -> Any:
    """Give an MLP of three dense layers, 17,226 parameters.

    Args:
        seed: of the initial weights and of the order of examples.
        epochs: passes over the 1,000 training examples.
        hidden: width of the first hidden layer; the second is half as wide.

    Returns:
        A ``keras.Model``; takes ``(n, 1, 8, 8)``, returns logits ``(n, 10)``, both float32.

    Raises:
        PlugInError: scikit-learn is not installed, or training failed.
    """
    return _trained({"net": "mlp", "seed": seed, "epochs": epochs, "width": hidden})


def _trained(options: dict[str, Any]) -> Any:
    from importlib.metadata import version

    from qb_tensorflow import digits_training

    inputs, targets = training_split()
    ingredients = (
        inputs.tobytes(),
        targets.tobytes(),
        json.dumps(options, sort_keys=True).encode(),
        inspect.getsource(digits_training).encode(),
        version("tensorflow").encode(),
        version("keras").encode(),
    )
    return model_cache.trained(ingredients, "keras", lambda: _train(options), _read)


def _read(archive: bytes) -> Any:
    from qb_tensorflow import keras_file

    try:
        return keras_file.load(archive)
    except PlugInError:  # damaged
        return None


def _train(options: dict[str, Any]) -> bytes:
    """Train in a fresh process, where TensorFlow can still be given one thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trained.keras"
        done = subprocess.run(  # noqa: S603  this interpreter and a module of ours
            [
                *(sys.executable, "-m", "qb_tensorflow.digits_training"),
                *(json.dumps(options), str(path)),
            ],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise PlugInError(
                f"training the digits model {options} failed: {done.stderr[-_LAST_CHARACTERS:]}"
            )
        return path.read_bytes()
