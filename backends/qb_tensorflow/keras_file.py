"""Keras models as bytes: the ``.keras`` archive, read without running anybody's code."""

import io
import json
import math
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qb_cluster.contracts import ArtifactFacts
from qb_cluster.errors import PlugInError, UnsupportedError
from qb_litert.quiet import quiet
from qb_tensorflow.framework import tensorflow

FORMAT = "keras"
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_ACTIVATIONS = "activations.json"
_CODE = {"Lambda": "a Lambda layer", "__lambda__": "a lambda", "function": "a Python function"}
_AGAIN = "save it again with model.save('name.keras')"


def dump(model: Any, activations: dict[str, Any] | None = None) -> bytes:
    """Write a Keras model; the same model gives the same bytes.

    Args:
        model: built; stays as it is.
        activations: see ``fake_quantization.attach``.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "model.keras"
        model.save(path)
        written = _members(path.read_bytes())
    metadata = json.loads(written[_METADATA])
    metadata.pop("date_saved", None)
    written[_METADATA] = json.dumps(metadata).encode()
    if activations is not None:
        written[_ACTIVATIONS] = json.dumps(activations).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in sorted(written.items()):
            archive.writestr(zipfile.ZipInfo(name), content)  # dated 1980
    return file.getvalue()


def load(data: bytes) -> Any:
    """Read a Keras model, for inference: without optimizer.

    Raises:
        PlugInError: it is no ``.keras`` archive, is damaged, or has no input shape.
        UnsupportedError: it holds code, or classes from outside Keras.
    """
    tensorflow()
    import keras

    _refuse_code(json.loads(_members(data)[_CONFIG]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        path.write_bytes(data)
        try:
            with quiet():
                model = keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # h5py, Keras and TensorFlow raise what they like
            raise PlugInError(f"this .keras archive cannot be read ({error}); {_AGAIN}") from error
    if not getattr(model, "inputs", None):
        raise PlugInError(
            f"the Keras model '{model.name}' has no input shape; give it a keras.Input, or call "
            "it once before it is saved"
        )
    return model


def activations(data: bytes) -> dict[str, Any] | None:
    """Give what ``dump`` was given."""
    stored = _members(data).get(_ACTIVATIONS)
    return None if stored is None else json.loads(stored)


def input_specs(model: Any) -> dict[str, Any]:
    """Give a ``tf.TensorSpec`` for each input, by name and in order."""
    tf = tensorflow()
    return {
        given.name: tf.TensorSpec(given.shape, given.dtype, given.name) for given in model.inputs
    }


def call(model: Any, fed: Mapping[str, Any]) -> Any:
    """Run a model for inference; each input is given by its name."""
    return model(*fed.values() if len(fed) == 1 else [dict(fed)], training=False)


def facts(model: Any) -> ArtifactFacts:
    """Count the parameters of a float model; moving averages of normalizations are among them."""
    tf = tensorflow()
    return ArtifactFacts(
        parameters=model.count_params(),
        parameter_bytes=sum(
            math.prod(weight.shape) * tf.as_dtype(weight.dtype).size for weight in model.weights
        ),
        quantized_parameters=0,
        integer_mac_share=0.0,
        integer_layer_mac_share=0.0,
    )


def _members(data: bytes) -> dict[str, bytes]:
    """Read the archive.

    Raises:
        PlugInError: it is no ``.keras`` archive, or damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
        json.loads(members[_CONFIG])
        members[_WEIGHTS]
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError) as error:
        raise PlugInError(
            f"these {len(data)} bytes are no whole .keras archive ({error}); {_AGAIN}"
        ) from error
    return members


def _refuse_code(config: Any) -> None:
    """Refuse what could be opened only by running or importing code of the model's author.

    Raises:
        UnsupportedError: there is a lambda, a function, or a class from outside Keras.
    """
    for node in _nodes(config):
        kind, module = node["class_name"], node.get("module") or ""
        what = _CODE.get(kind)
        if what is None and module and module.partition(".")[0] not in {"keras", "builtins"}:
            what = f"a class of its own ({module}.{kind})"
        if what is not None:
            inner = node.get("config")
            name = inner.get("name", kind) if isinstance(inner, dict) else inner
            raise UnsupportedError(
                f"the Keras model holds {what}, '{name}', whose code is not in the file and is "
                "never run from one; export the model (model.export(folder)) and name the "
                "SavedModel folder instead"
            )


def _nodes(config: Any) -> Iterator[dict[str, Any]]:
    """Give every part of a Keras configuration that names a class."""
    if isinstance(config, dict):
        if isinstance(config.get("class_name"), str):
            yield config
        for value in config.values():
            yield from _nodes(value)
    elif isinstance(config, list):
        for value in config:
            yield from _nodes(value)
