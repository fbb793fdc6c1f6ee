"""Exported programs as bytes: ``torch.export``'s own ``.pt2`` archive, kept free of pickles."""

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from qb_cluster.errors import CellError
from qb_pytorch.third_party import quiet

SIGNATURE: Final = "signature.json"
_HARMLESS: Final = re.compile(
    r"(data/(weights|constants)/(weight|tensor)_\d+|extra/[\w.]+|\.data/\w+|byteorder|version"
    r"|archive_format|archive_version)$"
)
_OPERATOR: Final = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed)\.(?!from_file|save)\w+(\.\w+)?"
    r"|torch\.(sym_\w+|_sym_sqrt)|math\.\w+"
    r"|_operator\.(getitem|neg|pos|abs|add|sub|mul|truediv|floordiv|mod|pow"
    r"|eq|ne|lt|le|gt|ge|and_|or_|xor|not_)"
    r"|(?!(torch|math|_operator)\.)[\w.]*"  # names of weights, buffers and inputs
)
_WORD: Final = re.compile(
    r"[su]\d+|Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv"
    r"|TrueToFloat|ToFloat|IntTrueDiv|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Abs|floor|ceiling|int_oo|oo"
    r"|positive|negative|nonnegative|integer|true|false|True|False"
)
"""What sizes are written with, by ``sympy.srepr``."""


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
    """Read a program that ``dump`` wrote.

    Raises:
        CellError: the archive is damaged, or holds what would run code when read.
    """
    program, extra = read(data, "the artifact")
    if SIGNATURE not in extra:
        raise CellError(f"the artifact holds no {SIGNATURE}; delete it and run again")
    signature = json.loads(extra[SIGNATURE])
    sample = {
        name: torch.zeros(given["shape"], dtype=getattr(torch, given["dtype"]))
        for name, given in signature["inputs"].items()
    }
    return StoredProgram(program, sample, signature["outputs"])


def read(data: bytes, what: str) -> tuple[Any, dict[str, str]]:
    """Read an exported program without running anything in it.

    ``torch.export.load`` alone would unpickle weights, load compiled libraries, evaluate the
    text of symbolic shapes, and look up any function of torch by name. So the archive is
    rebuilt from the entries, operators and shapes that are harmless.

    Args:
        data: a ``.pt2`` archive.
        what: to call it in errors.

    Returns:
        The ``torch.export.ExportedProgram``, and the extra files by name.

    Raises:
        CellError: it is no such archive, is damaged, or holds what would run code when read.
    """
    safe = _rebuilt(data, what)
    extra = {SIGNATURE: ""}
    try:
        with quiet():
            # Registers the operators of quantized tensors, which the program may call.
            from torchao.quantization.pt2e import quantize_pt2e  # noqa: F401

            program = torch.export.load(io.BytesIO(safe), extra_files=extra)
    except Exception as error:  # torch has no error of its own for such files, but many
        raise _unreadable(what, error) from None
    return program, {name: text for name, text in extra.items() if text}


def _rebuilt(data: bytes, what: str) -> bytes:
    """Give an archive of the known and harmless entries alone."""
    rebuilt = io.BytesIO()
    try:
        with (
            zipfile.ZipFile(io.BytesIO(data)) as archive,
            zipfile.ZipFile(rebuilt, "w") as safe,
        ):
            contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
            for name, content in contents.items():
                safe.writestr(name, _checked(name, content, what))
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError) as error:
        raise _unreadable(what, error) from None
    if not any(_inner(name).startswith("models/") for name in contents):
        raise CellError(
            f"{what} is no program of torch.export.save (it has no models/); nothing in it was "
            "run; write it with torch.export.save of this version of torch"
        )
    return rebuilt.getvalue()


def _checked(name: str, content: bytes, what: str) -> bytes:
    """Give an entry's content, or less of it where it is not needed.

    Raises:
        CellError: reading it would run code.
    """
    inner = _inner(name)
    if inner.startswith("data/sample_inputs/"):
        return b""  # a pickle, of examples that nothing here needs
    if inner.endswith("_config.json"):
        for entry in json.loads(content)["config"].values():
            if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
                raise _hostile(what, f"holds pickles ({inner}: {entry['path_name']})")
        return content
    if inner.startswith("models/"):
        model = json.loads(content)
        model["guards_code"] = []  # text that torch would compile and run
        _check_model(model, what)
        return json.dumps(model).encode()
    if inner.endswith((".pt", ".pkl")) and content:
        raise _hostile(what, f"holds pickles ({inner})")
    if not _HARMLESS.match(inner):
        raise _hostile(what, f"holds '{inner}'")
    return content


def _check_model(value: Any, what: str, key: str = "") -> None:
    """Refuse operators and shapes that could be anything else, anywhere in a graph."""
    if isinstance(value, dict):
        for name, member in value.items():
            if key == "range_constraints":
                _check_expression(name, what)
            _check_model(member, what, name)
    elif isinstance(value, list):
        for member in value:
            _check_model(member, what, key)
    elif key == "target" and isinstance(value, str) and not _OPERATOR.fullmatch(value):
        raise _hostile(what, f"calls '{value}'")
    elif key == "expr_str":
        _check_expression(value, what)


def _check_expression(text: str, what: str) -> None:
    words = set(re.findall(r"[^\W\d]\w*", text))
    if not re.fullmatch(r"[\w\s+\-*/%(),.<>=&|~']*", text) or not all(map(_WORD.fullmatch, words)):
        raise _hostile(what, f"has '{text}' for a size")


def _inner(name: str) -> str:
    """Drop an archive's own folder from the name of an entry."""
    return name.partition("/")[2]


def _hostile(what: str, deed: str) -> CellError:
    return CellError(
        f"{what} {deed}, which could run code of its maker's, so nothing in it was run; write it "
        "with torch.export.save from a model of plain tensors and ATen operators"
    )


def _unreadable(what: str, error: Exception) -> CellError:
    story = str(error).strip().partition("\n")[0]
    return CellError(
        f"{what} is damaged, or no program of torch.export.save ({type(error).__name__}: "
        f"{story}); nothing in it was run; write it anew"
    )
