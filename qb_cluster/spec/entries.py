"""Entries of the axes: what the YAML names, made into values, each label and thing once."""

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Final, get_type_hints

from pydantic import TypeAdapter, ValidationError

from qb_cluster.catalog import plugins
from qb_cluster.contracts import Bits, Device, Ref, Scheme, SshBoard
from qb_cluster.contracts.match import AXES, Axis
from qb_cluster.errors import PlugInError
from qb_cluster.spec.device_keys import ACCELERATOR, DEVICES, DeviceKeys, SshKeys, unknown_device
from qb_cluster.spec.document import Document, Location, Problem
from qb_cluster.spec.schema import NamedKeys, label_for
from qb_cluster.spec.sweep import (
    Entry,
    NamedBackend,
    NamedScheme,
    Requested,
    label_of,
)

_BACKEND_PARTS: Final = (
    "name",
    "requires",
    "distributions",
    "support",
    "convert",
    "quantize",
    "open",
    "takes",
)


_BASELINE: Final = "float"
"""What tables call the scheme of a float baseline."""


class _EntryError(Exception):
    """An entry cannot be made; the message says why."""


class Entries:
    """Makes the entries of a spec and gathers what is wrong with them.

    Args:
        document: where the entries stand.
    """

    def __init__(self, document: Document) -> None:
        self.problems: list[Problem] = []
        self._document = document
        self._by_label: dict[Axis, dict[str, Entry]] = {axis: {} for axis in AXES}
        self._by_identity: dict[Axis, dict[Hashable, Entry]] = {axis: {} for axis in AXES}

    def axis(self, axis: Axis, written: Sequence[Any], at: Location) -> tuple[Entry, ...]:
        """Make the entries of an axis of the sweep. The same thing twice is a problem."""

        def new(one: Any) -> Entry:
            entry = _make(axis, one)
            if self._known(axis, entry) is not None:
                raise _EntryError(f"'{label_of(entry)}' is listed twice")
            return entry

        return self._gather(axis, written, at, new)

    def included(self, axis: Axis, written: Sequence[Any], at: Location) -> tuple[Entry, ...]:
        """Make the entries of an axis of an include. A label of the sweep's stands for its."""
        found: set[str] = set()

        def old_or_new(one: Any) -> Entry:
            entry = self._by_label[axis].get(one) if isinstance(one, str) else None
            if entry is None and axis == "device" and isinstance(one, str) and one not in DEVICES:
                raise _EntryError(unknown_device(one, self._by_label[axis]))
            entry = entry or _make(axis, one)
            entry = self._known(axis, entry) or entry
            if label_of(entry) in found:
                raise _EntryError(f"'{label_of(entry)}' is listed twice")
            found.add(label_of(entry))
            return entry

        return self._gather(axis, written, at, old_or_new)

    def _gather(
        self,
        axis: Axis,
        written: Sequence[Any],
        at: Location,
        make: Callable[[Any], Entry],
    ) -> tuple[Entry, ...]:
        entries: list[Entry] = []
        for index, one in enumerate(written):
            try:
                entry = make(one)
            except _EntryError as error:
                self.problems.append(self._document.problem((*at, index), str(error)))
                continue
            self._by_label[axis][label_of(entry)] = entry
            self._by_identity[axis][_identity(entry)] = entry
            entries.append(entry)
        return tuple(entries)

    def _known(self, axis: Axis, entry: Entry) -> Entry | None:
        """Give the entry that is this one already.

        Raises:
            _EntryError: the label means another, or the thing has another label.
        """
        label = label_of(entry)
        if axis == "scheme" and label == _BASELINE:
            raise _EntryError(
                f"'{label}' is what tables call the float baseline; give this scheme another label"
            )
        by_label = self._by_label[axis].get(label)
        by_identity = self._by_identity[axis].get(_identity(entry))
        if by_label is not None and by_label is not by_identity:
            what = "another name" if axis == "device" else "a label"
            raise _EntryError(f"another {axis} is called '{label}' already; give this one {what}")
        if by_identity is not None and by_label is None:
            what = "name" if axis == "device" else "label"
            raise _EntryError(f"'{label}' is '{label_of(by_identity)}' again, under another {what}")
        return by_identity


def ref_of(entry: str | NamedKeys) -> Ref:
    """Make a reference, with its label and its options in canonical form."""
    name, options = (entry, {}) if isinstance(entry, str) else (entry.name, entry.options)
    return Ref(label_for(entry), name, json.dumps(options, sort_keys=True, separators=(",", ":")))


def _make(axis: Axis, written: Any) -> Entry:
    match axis, written:
        case (("model" | "dataset"), str() | NamedKeys()):
            return _checked_ref(axis, written)
        case "scheme", str() | NamedKeys():
            return _made(named_scheme, _checked_ref("scheme", written))
        case "backend", str() | NamedKeys():
            return _made(named_backend, _checked_ref("backend", written))
        case "device", str():
            return Device(written)
        case "device", DeviceKeys():
            return _device(written)
        case _:
            entry: Bits | Requested = written  # validated as such
            return entry


def _device(written: DeviceKeys) -> Device:
    labels, gpus = dict(written.labels), written.gpus
    if written.accelerator is not None:
        labels[ACCELERATOR] = written.accelerator
        gpus = 1
    return Device(
        written.name,
        written.threads,
        tuple(sorted(labels.items())),
        tuple(written.backends),
        None if written.ssh is None else _board(written.ssh),
        gpus,
        tuple(sorted(written.prepared_on.items())),
    )


def _board(written: SshKeys) -> SshBoard:
    """Take the files of this machine by their whole paths: a worker has a folder of its own."""
    files = {
        name: _whole(path) if path else ""
        for name, path in {"known_hosts": written.known_hosts, "key": written.key}.items()
    }
    return SshBoard(**written.model_dump() | files)


def _whole(path: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:  # no such user; whoever reads the file says so
        return path


def _checked_ref(kind: plugins.Kind, written: str | NamedKeys) -> Ref:
    ref = ref_of(written)
    try:
        plugins.check(kind, ref.target)
    except (PlugInError, ValueError) as error:  # ValueError: find_spec of a module like __main__
        raise _EntryError(str(error)) from error
    if not plugins.is_model_file(kind, ref.target):
        return ref
    if ref.options:
        raise _EntryError(f"'{ref.target}' is a model file: it takes no options")
    return Ref(ref.label, str(Path(ref.target)))  # ./x.onnx is x.onnx


def _made(make: Callable[[Ref], Entry], ref: Ref) -> Entry:
    try:
        return make(ref)
    except PlugInError as error:
        raise _EntryError(" ".join(str(error).split())) from error


def named_scheme(ref: Ref) -> NamedScheme:
    """Make a scheme.

    Raises:
        PlugInError: it cannot be made, is no scheme, or one of its fields has a value that no
            scheme has.
    """
    scheme = plugins.make("scheme", ref)
    if not isinstance(scheme, Scheme):
        raise PlugInError(
            f"scheme '{ref.label}' gives {type(scheme).__name__}; it has to return "
            "qb_cluster.contracts.Scheme"
        )
    for name, kind in _scheme_fields().items():
        try:
            kind.validate_python(getattr(scheme, name), strict=True)
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            words = wrong["msg"].replace("Input should be", "should be")
            raise PlugInError(
                f"scheme '{ref.label}': '{name}' {words[0].lower()}{words[1:]}, not "
                f"{wrong['input']!r}"
            ) from error
    return NamedScheme(ref, scheme)


@cache
def _scheme_fields() -> dict[str, TypeAdapter[Any]]:
    return {field.name: TypeAdapter(get_type_hints(Scheme)[field.name]) for field in fields(Scheme)}


def named_backend(ref: Ref) -> NamedBackend:
    """Make a backend.

    Raises:
        PlugInError: it cannot be made, or lacks a part of the contract.
    """
    backend = plugins.make("backend", ref)
    lacking = [part for part in _BACKEND_PARTS if not hasattr(backend, part)]
    if lacking:
        raise PlugInError(
            f"backend '{ref.label}' lacks {', '.join(lacking)}; see qb_cluster.contracts.Backend"
        )
    return NamedBackend(ref, backend)


def _identity(entry: Entry) -> Hashable:
    """Tell what decides results: everything but the label."""
    match entry:
        case Ref():
            return entry.target, entry.options_json
        case NamedScheme() | NamedBackend():
            return _identity(entry.ref)
        case Device(labels=labels, ssh=ssh, gpus=gpus) if labels or ssh or gpus:
            return labels, ssh, gpus, entry.threads
        case _:
            return entry
