"""A YAML file to a sweep, or to an error that says where the file is wrong."""

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from qb_cluster.catalog.plugins import nearest
from qb_cluster.spec.document import Document, Location, Problem, read, spec_error
from qb_cluster.spec.resolve import resolve_sweep
from qb_cluster.spec.schema import SweepKeys
from qb_cluster.spec.sweep import SweepSpec


def load_spec(path: Path) -> SweepSpec:
    """Read a sweep spec.

    Models, datasets and metrics are looked up but not imported; schemes and backends are made.

    Raises:
        SpecError: the file cannot be used. Each line of the message is one problem and starts
            with ``file:line:column: ``.
    """
    document = read(path)
    try:
        keys = SweepKeys.model_validate(document.data)
    except ValidationError as error:
        raise spec_error(path, _problems(document, error)) from error
    return resolve_sweep(document, keys)


def _problems(document: Document, error: ValidationError) -> Iterator[Problem]:
    details = error.errors(include_url=False)
    misspelt: set[Location] = set()
    for detail in details:
        if detail["type"] == "extra_forbidden":
            *above, key = document.existing(detail["loc"])
            meant, hint = _meant(tuple(above), str(key))
            misspelt.add((*above, meant))
            yield document.problem(detail["loc"], f"unknown key '{key}'{hint}", at_key=True)
    for detail in details:
        where = document.existing(detail["loc"])
        if detail["type"] == "missing":
            key = detail["loc"][-1]
            if (*where, key) not in misspelt:  # one mistake, one message
                yield document.problem(where, f"'{key}' is missing")
        elif detail["type"] != "extra_forbidden":
            yield document.problem(_culprit(where, detail), _explain(where, detail))


def _culprit(where: Location, detail: ErrorDetails) -> Location:
    """An entry that is no good is so for its name, where it has one."""
    named = detail["type"] == "value_error" and isinstance(detail["input"], dict)
    return (*where, "name") if named else where


def _explain(where: Location, detail: ErrorDetails) -> str:
    name = next((part for part in reversed(where) if isinstance(part, str)), "the spec")
    given = reprlib.repr(detail["input"])
    match detail["type"]:
        case "value_error":
            return str(detail["ctx"]["error"])
        case "too_short":
            return f"'{name}' is empty; list at least one"
        case _ if detail["input"] is None:
            return f"'{name}' is empty; give it a value, or leave the key out"
        case "string_type":
            return f"'{name}' takes text, not {given}; put it in quotes if it is a name"
        case "string_pattern_mismatch":
            return f"'{name}' takes letters, digits, '.', '_' and '-', not {given}"
        case _:
            words = detail["msg"].replace("Input should be", "should be")
            return f"'{name}' {words[0].lower()}{words[1:]}, not {given}"


def _meant(above: Location, key: str) -> tuple[str, str]:
    """Give the nearest known key at a place, and the end of the message that says so."""
    keys: type[BaseModel] = SweepKeys
    for part in above:
        if part in keys.model_fields:
            keys = _model_in(keys.model_fields[str(part)].annotation) or keys
    hint = nearest(key, list(keys.model_fields))
    meant = hint.partition("did you mean '")[2].partition("'")[0]
    return meant, hint


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the model inside an annotation; no field of ours has two."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(part) for part in get_args(annotation))
    return next((model for model in found if model is not None), None)
