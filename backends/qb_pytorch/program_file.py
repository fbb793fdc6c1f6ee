"""Exported programs as bytes: ``torch.export``'s own ``.pt2`` archive, kept free of pickles."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qb_cluster.errors import CellError
from qb_pytorch.third_party import quiet

SIGNATURE = "signature.json"


@dataclass(frozen=True, slots=True)
class StoredProgram:
    """A program, and the names of what goes in and comes out.

    Attributes:
        program: a ``torch.export.ExportedProgram`` that takes tensors by position.
        sample: two examples, all zero, of each input, by name and in order.
        outputs: names of its outputs, in order.
    """

    program: Any
    sample: Mapping[str, torch.Tensor]
    outputs: Sequence[str]


def dump(program: Any, sample: Mapping[str, torch.Tensor], outputs: Sequence[str]) -> bytes:
    """Write a program.

    Args:
        program: its tracing history and example inputs are dropped: they would outweigh the
            weights of a small net, and name files of this machine.
        sample: the inputs it was traced with, by name and in order.
        outputs: names of its outputs, in order.
    """
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    inputs = {
        name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        for name, tensor in sample.items()
    }
    signature = json.dumps({"inputs": inputs, "outputs": list(outputs)})
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={SIGNATURE: signature})
    return file.getvalue()


def load(data: bytes) -> StoredProgram:
    """Read a program.

    Raises:
        CellError: the archive holds pickles, which would run code; ``dump`` writes none.
    """
    _refuse_pickles(data)
    extra = {SIGNATURE: ""}
    with quiet():
        program = torch.export.load(io.BytesIO(data), extra_files=extra)
    signature = json.loads(extra[SIGNATURE])
    sample = {
        name: torch.zeros(given["shape"], dtype=getattr(torch, given["dtype"]))
        for name, given in signature["inputs"].items()
    }
    return StoredProgram(program, sample, signature["outputs"])


def _refuse_pickles(data: bytes) -> None:
    """Refuse an archive that ``torch.export.load`` would unpickle anything of."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickles = [
            entry.filename
            for entry in archive.infolist()
            if entry.filename.endswith(".pt") and entry.file_size
        ]
        for name in archive.namelist():
            if name.endswith("_config.json"):
                payloads = json.loads(archive.read(name))["config"].values()
                pickles += [entry["path_name"] for entry in payloads if entry["use_pickle"]]
    if pickles:
        raise CellError(
            f"the artifact holds pickles ({', '.join(sorted(set(pickles)))}), which run code when "
            "read; delete it and run again"
        )
