"""SavedModels as bytes: the folder in a zip archive, and the signature that is run."""

import contextlib
import io
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qb_cluster.contracts import ArtifactFacts
from qb_cluster.errors import NonFiniteError, PlugInError, UnsupportedError
from qb_litert.quiet import quiet
from qb_tensorflow.framework import tensorflow

FORMAT = "saved_model.zip"
_GRAPH = "saved_model.pb"
_DEFAULT = "serving_default"
_TOUCHES_FILES = {"ReadFile", "WriteFile", "PyFunc", "PyFuncStateless", "EagerPyFunc"}


@dataclass(frozen=True, slots=True)
class Signature:
    """What of a SavedModel is run.

    Attributes:
        key: its name.
        function: takes tensors by keyword, gives tensors by name.
        owner: the loaded model, which must live as long as the function.
    """

    key: str
    function: Any
    owner: Any


def pack(folder: Path) -> bytes:
    """Put a SavedModel into an archive; the same folder gives the same bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.writestr(zipfile.ZipInfo(str(path.relative_to(folder))), path.read_bytes())
    return file.getvalue()


@contextlib.contextmanager
def unpacked(data: bytes) -> Iterator[Path]:
    """Lay the folder out for the length of a block.

    Raises:
        PlugInError: these bytes are not what ``pack`` gave.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                archive.extractall(folder)  # which keeps members inside the folder
        except (zipfile.BadZipFile, EOFError) as error:
            raise PlugInError(
                f"these {len(data)} bytes are no packed SavedModel ({error}); convert it again"
            ) from error
        yield Path(folder)


def load(folder: Path) -> Signature:
    """Load a SavedModel.

    Raises:
        PlugInError: it is damaged.
        UnsupportedError: there is no single signature to run, or its graph touches files or
            Python.
    """
    tf = tensorflow()
    _refuse_side_effects(folder)
    try:
        with quiet():
            model = tf.saved_model.load(str(folder))
    except Exception as error:  # TensorFlow raises what it likes
        raise PlugInError(
            f"this SavedModel cannot be read ({error}); save it again with model.export(folder)"
        ) from error
    keys = list(model.signatures)
    key = _DEFAULT if _DEFAULT in keys else keys[0] if len(keys) == 1 else None
    if key is None:
        raise UnsupportedError(
            f"the SavedModel has no signature '{_DEFAULT}' but {keys or 'none'}; save it with "
            f"signatures={{'{_DEFAULT}': function}}"
        )
    return Signature(key, model.signatures[key], model)


def facts(signature: Signature) -> ArtifactFacts:
    """Count the floats that the signature computes with, variables and constants alike.

    Raises:
        NonFiniteError: some are NaN or infinite.
    """
    from tensorflow.python.framework.convert_to_constants import (  # the one that takes signatures
        convert_variables_to_constants_v2,
    )

    tf = tensorflow()
    with quiet():
        graph = convert_variables_to_constants_v2(signature.function).graph
    count = stored_bytes = 0
    for operation in graph.get_operations():
        if operation.type != "Const" or not operation.outputs[0].dtype.is_floating:
            continue
        values = tf.make_ndarray(operation.get_attr("value"))
        if values.ndim == 0:  # an epsilon, not a parameter
            continue
        if not np.isfinite(values.astype(np.float32)).all():
            raise NonFiniteError(
                f"'{operation.name}' holds NaN or infinity; load or train the model anew"
            )
        count += values.size
        stored_bytes += values.nbytes
    return ArtifactFacts(
        parameters=count,
        parameter_bytes=stored_bytes,
        quantized_parameters=0,
        integer_mac_share=0.0,
        integer_layer_mac_share=0.0,
    )


def _refuse_side_effects(folder: Path) -> None:
    """Refuse a graph that reads or writes files, or calls Python, when it is run.

    Raises:
        PlugInError: the graph cannot be parsed.
        UnsupportedError: it does such things.
    """
    from tensorflow.python.saved_model.loader_impl import parse_saved_model

    try:
        parsed = parse_saved_model(str(folder))
    except OSError as error:
        raise PlugInError(
            f"{_GRAPH} cannot be read ({error}); save the model again with model.export(folder)"
        ) from error
    graphs = [meta.graph_def for meta in parsed.meta_graphs]
    operations = {node.op for graph in graphs for node in graph.node}
    operations |= {
        node.op for graph in graphs for part in graph.library.function for node in part.node_def
    }
    if found := sorted(operations & _TOUCHES_FILES):
        raise UnsupportedError(
            f"the SavedModel's graph holds {', '.join(found)}: it would touch files or run "
            "Python; export the model without them"
        )
