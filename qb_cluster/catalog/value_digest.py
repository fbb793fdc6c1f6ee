"""A digest of any value: its arrays, its plain attributes, and the code of its classes.

Equal in every process for whatever is made in the same way: dicts and sets have no order, and no
address, hash or time of day gets in. Objects count by what pickling would keep of them
(``__reduce_ex__``), so a class may say itself what that is. What cannot be pickled, such as a
session of a runtime, counts by its class alone, and so does what is nested a hundred deep.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from functools import singledispatchmethod
from hashlib import blake2b
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qb_cluster.catalog import insides
from qb_cluster.catalog.model import model_kind
from qb_cluster.catalog.source_code import source_digest

_DEEPEST: Final = 100


def value_digest(*values: Any) -> str:
    """Digest values, and the code of every class and function met in them.

    Arrays and tensors are read where they lie, one by one; nothing is copied whole.

    Returns:
        32 hex digits.
    """
    walk = _Walk()
    return _hash("all", walk.of(values), source_digest(walk.modules).encode()).hex()


def array_digest(array: NDArray[Any]) -> bytes:
    """Digest an array's type, shape and elements."""
    if array.dtype.hasobject:
        return _hash("objects", str(array.shape).encode(), _Walk().of(array.tolist()))
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return _hash("array", f"{array.dtype.name} {array.dtype.str} {array.shape}".encode(), flat)


class _Walk:
    """Goes through a value once.

    Attributes:
        modules: names of the modules whose classes and functions were met.
    """

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self._depth = 0
        self._met: dict[int, int] = {}  # objects by id, numbered in the order they were met
        self._alive: list[Any] = []  # an id is free again once its object is gone

    def of(self, value: Any) -> bytes:
        """Give 16 bytes."""
        if self._depth == _DEEPEST:
            return _hash("deep", self._name(type(value)))
        self._depth += 1
        try:
            return self._of(value)
        finally:
            self._depth -= 1

    @singledispatchmethod
    def _of(self, value: Any) -> bytes:
        if insides.is_tensor(value):
            return _hash("tensor", *map(self.of, insides.of_tensor(value)))
        return self._once(value, self._model if model_kind(value) != "object" else self._reduced)

    @_of.register(type(None) | bool | int | float | complex | str | np.dtype | range | slice)
    @_of.register(PurePath)
    def _plain(self, value: Any) -> bytes:
        if isinstance(value, Enum):
            return _hash("enum", self._name(type(value)), value.name.encode())
        return _hash(type(value).__name__, str(value).encode("utf-8", "surrogatepass"))

    @_of.register(bytes | bytearray)
    def _bytes(self, value: bytes) -> bytes:
        return _hash("bytes", value)

    @_of.register(np.ndarray | np.generic)
    def _array(self, value: Any) -> bytes:
        return array_digest(np.asarray(value))

    @_of.register(type)
    def _class(self, value: type) -> bytes:
        return _hash("class", self._name(value))

    @_of.register(ModuleType)
    def _module(self, value: ModuleType) -> bytes:
        self.modules.add(value.__name__)
        return _hash("module", value.__name__.encode())

    @_of.register(tuple | list)
    def _sequence(self, value: Any) -> bytes:
        return self._once(value, lambda items: _hash(type(items).__name__, *map(self.of, items)))

    @_of.register(set | frozenset)
    def _set(self, value: Any) -> bytes:
        # Each by itself: the order in which they are met differs between processes.
        return _hash("set", *sorted(map(self._alone, value)))

    @_of.register(dict)
    def _mapping(self, value: dict[Any, Any]) -> bytes:
        return self._once(value, self._dict if type(value) is dict else self._reduced)

    @_of.register(FunctionType)
    def _function(self, value: FunctionType) -> bytes:
        return self._once(value, self._carried)

    @_of.register(MethodType)
    def _method(self, value: MethodType) -> bytes:
        return _hash("method", self.of(value.__func__), self.of(value.__self__))

    @_of.register(BuiltinFunctionType)
    def _builtin(self, value: BuiltinFunctionType) -> bytes:
        return _hash("builtin", self.of(value.__self__), value.__name__.encode())

    def _once(self, value: Any, digest: Callable[[Any], bytes]) -> bytes:
        """Digest an object, or say that it was met before: it is shared, or part of itself."""
        if isinstance(value, tuple):  # equal ones may be one object or two, as Python likes
            return digest(value)
        if id(value) in self._met:
            return _hash("again", str(self._met[id(value)]).encode())
        self._meet(value)
        return digest(value)

    def _meet(self, value: Any) -> None:
        self._met[id(value)] = len(self._met)
        self._alive.append(value)

    def _model(self, value: Any) -> bytes:
        for part in insides.parts(value):  # they may point at one another
            self._meet(part)
        return _hash("model", *map(self.of, insides.of_model(value)))

    def _alone(self, value: Any) -> bytes:
        walk = _Walk()
        digest = walk.of(value)
        self.modules |= walk.modules
        return digest

    def _dict(self, value: Mapping[Any, Any]) -> bytes:
        keyed = sorted(
            ((self._alone(key), item) for key, item in value.items()), key=lambda pair: pair[0]
        )
        return _hash("dict", *(part for key, item in keyed for part in (key, self.of(item))))

    def _carried(self, value: FunctionType) -> bytes:
        cells = []
        for cell in value.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # not assigned yet
                cells.append(None)
        around = (value.__defaults__, value.__kwdefaults__, cells, vars(value))
        return _hash("function", self._name(value), self.of(around))

    def _reduced(self, value: Any) -> bytes:
        name = self._name(type(value))
        try:
            reduced = value.__reduce_ex__(4)
        except Exception:  # a session, a lock, an open file: whatever its class likes to raise
            return _hash("opaque", name)
        if isinstance(reduced, str):  # a global, such as a cached function
            self.modules.add(getattr(value, "__module__", None) or "builtins")
            return _hash("global", name, reduced.encode())
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        return _hash(
            "object",
            name,
            self.of(make),
            self.of(arguments),
            self.of(state),
            self.of(list(items or ())),
            self._dict(dict(pairs or ())),
        )

    def _name(self, value: Any) -> bytes:
        module = getattr(value, "__module__", None) or ""
        self.modules.add(module)
        return f"{module}.{value.__qualname__}".encode()


def _hash(kind: str, *parts: Any) -> bytes:
    """Hash bytes, each with its length before it, so that no two lists of parts are alike."""
    digest = blake2b(kind.encode(), digest_size=16)
    for part in parts:
        digest.update(b"|%d|" % len(part))
        digest.update(part)
    return digest.digest()
