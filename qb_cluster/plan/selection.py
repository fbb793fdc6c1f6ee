"""Picking cells of a plan: by their last status, by their id, or by a pattern of their name.

A pattern is, in this order:

1. a status of the results. ``failed`` is every failure: ``failed``, ``timeout``, ``oom`` and
   ``crashed``; any other status is itself alone.
2. a cell id, 16 hex digits.
3. a pattern with ``*``, ``?`` and ``[…]`` of ``model/dataset/backend/device/scheme/bits``, each
   as the plan shows it, or of as many of these as it has, from the left: ``digits-cnn``,
   ``digits-cnn/*/tflite``, ``*/w2``. ``*`` takes slashes too. What is written out just as the
   plan shows it, brackets and all, is meant like that.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import translate
from typing import Final

from qb_cluster.contracts import STATUSES, Cell
from qb_cluster.spec import label_of

FAILURES: Final = ("failed", "timeout", "oom", "crashed")
NAME_PARTS: Final = "model/dataset/backend/device/scheme/bits"
_CELL_ID: Final = re.compile("[0-9a-f]{16}")
_NEAR: Final = 3  # near misses that a sentence names


def cell_name(cell: Cell) -> str:
    """Give what patterns match: ``model/dataset/backend/device/scheme/bits`` as the plan has it."""
    scheme = "float" if cell.scheme is None else cell.scheme.label
    bits = "f32" if cell.bits is None else str(cell.bits)
    return (
        f"{cell.model.label}/{cell.dataset.label}/{cell.backend.label}/{label_of(cell.device)}"
        f"/{scheme}/{bits}"
    )


def rerun_filter(patterns: Sequence[str]) -> Callable[[Cell, str], bool]:
    """Make the test that tells, of a cell and the status it had, whether it is to run again."""
    statuses = {status for pattern in patterns for status in _statuses(pattern)}
    others = [pattern for pattern in patterns if not _statuses(pattern)]
    ids = set(filter(_CELL_ID.fullmatch, others))
    is_named = _name_test([pattern for pattern in others if pattern not in ids])

    def is_rerun(cell: Cell, status: str) -> bool:
        return status in statuses or cell.cell_id in ids or is_named(cell_name(cell))

    return is_rerun


def unmatched(patterns: Sequence[str], plan: Iterable[Cell]) -> list[str]:
    """Tell which patterns can match no cell of a plan: one sentence each, none where all can.

    Statuses always can. The plan is read no further than until the last pattern is found, and
    nothing of it is kept but the labels it has.
    """
    others = [pattern for pattern in dict.fromkeys(patterns) if not _statuses(pattern)]
    ids = set(filter(_CELL_ID.fullmatch, others))
    names = {pattern: _name_test([pattern]) for pattern in others if pattern not in ids}
    labels: dict[str, None] = {}
    for cell in plan if others else ():
        ids.discard(cell.cell_id)
        name = cell_name(cell)
        labels.update(dict.fromkeys(name.split("/")))
        for pattern in [pattern for pattern, is_meant in names.items() if is_meant(name)]:
            del names[pattern]
        if not ids and not names:
            break
    missing = [pattern for pattern in others if pattern in ids or pattern in names]
    return [_why(pattern, list(labels)) for pattern in missing]


def _statuses(pattern: str) -> tuple[str, ...]:
    if pattern == "failed":
        return FAILURES
    return (pattern,) if pattern in STATUSES else ()


def _name_test(patterns: Sequence[str]) -> Callable[[str], bool]:
    if not patterns:
        return lambda name: False  # noqa: ARG005
    # Labels hold brackets, which are ranges to a pattern.
    forms = [form for p in patterns for form in (translate(p), translate(f"{p}/*"))]
    forms += [rf"{re.escape(p)}(/.*)?\Z" for p in patterns]
    matches = re.compile("|".join(forms), re.DOTALL).match
    return lambda name: bool(matches(name))


def _why(pattern: str, labels: list[str]) -> str:
    if _CELL_ID.fullmatch(pattern):
        return f"no cell of this plan has the id '{pattern}'; `qb plan` lists them"
    for part in pattern.split("/"):
        is_part = _name_test([part])
        if not any(map(is_part, labels)):
            return f"'{pattern}' matches no cell: '{part}' is {_nothing(part, pattern, labels)}"
    return f"'{pattern}' matches no cell: none is all of this at once; a cell is {NAME_PARTS}"


def _nothing(part: str, pattern: str, labels: list[str]) -> str:
    known = [*STATUSES, *labels] if part == pattern else labels
    kinds = "status, id or label" if part == pattern else "label"
    near = get_close_matches(part, known, n=_NEAR)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`qb plan` lists them"
    return f"no {kinds} of this plan; {hint}"
