"""What a backend says of an artifact, held against the bounds of what can be said."""

from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any, Final

from qb_cluster.contracts import Artifact, ArtifactFacts, Backend
from qb_cluster.contracts.coverage import LAYER_KINDS, SCOPES
from qb_cluster.errors import PlugInError

_COUNTS: Final = ("parameters", "quantized_parameters")
_SHARES: Final = ("integer_mac_share", "integer_layer_mac_share")
_TEXTS: Final = ("notes", "fallback_ops")
_ROUNDING: Final = 1e-9
"""A share is a quotient of sums of floats."""


def check_facts(
    backend: Backend, artifact: Artifact, baseline: Artifact | None, *, simulated: bool
) -> None:
    """Refuse facts that cannot be true: all that a row says of an artifact rests on them.

    Args:
        backend: that made the artifact.
        artifact: with what is said of it.
        baseline: the float artifact; ``None`` where this is one.
        simulated: whether it holds floats on purpose.

    Raises:
        PlugInError: a number is none, is outside its bounds, or contradicts another one or the
            artifact.
    """
    for fault in _faults(artifact, baseline, simulated):
        raise PlugInError(
            f"backend '{backend.name}' says of its artifact what cannot be: {fault}; its facts "
            "are to be read from the artifact, see ArtifactFacts"
        )


def _faults(artifact: Artifact, baseline: Artifact | None, simulated: bool) -> Iterator[str]:
    facts = artifact.facts
    yield from _own_faults(facts)
    stored = facts.parameter_bytes
    if stored is not None:
        if not _is_whole(stored) or stored < 0:
            yield f"parameter_bytes is {stored!r}, and bytes are whole numbers from 0"
        elif stored > len(artifact.data):
            yield f"parameter_bytes is {stored}, more than the {len(artifact.data)} of the artifact"
    if baseline is None:
        if facts.quantized_parameters:
            yield f"quantized_parameters is {facts.quantized_parameters} of the float model"
        return
    if facts.quantized_parameters and artifact.data == baseline.data:
        yield (
            f"quantized_parameters is {facts.quantized_parameters}, and it is the float artifact "
            "byte for byte"
        )
    if facts.quantized_parameters and stored is None and not simulated:
        yield "parameter_bytes is None, and it is not simulated"


def _own_faults(facts: ArtifactFacts) -> Iterator[str]:
    for name in _COUNTS:
        count = getattr(facts, name)
        if not _is_whole(count) or count < 0:
            yield f"{name} is {count!r}, and counts are whole numbers from 0"
            return
    if facts.quantized_parameters > facts.parameters:
        yield f"{facts.quantized_parameters} of {facts.parameters} parameters are quantized"
    for name in _SHARES:
        share = getattr(facts, name)
        if share is not None and not _is_share(share):
            yield f"{name} is {share!r}, and shares are from 0 to 1"
    for name in _TEXTS:
        texts = getattr(facts, name)
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            yield f"{name} is {texts!r}, and no tuple of texts"
    if facts.scope is not None and facts.scope not in SCOPES:
        yield f"scope is {facts.scope!r}, and none of {', '.join(SCOPES)}"
    if facts.coverage is not None:
        yield from _coverage_faults(facts.coverage, facts.parameters)


def _coverage_faults(coverage: Mapping[Any, Any], parameters: int) -> Iterator[str]:
    covered = 0
    for kind, (done, total) in coverage.items():
        if kind not in LAYER_KINDS:
            yield f"coverage has the kind {kind!r}, and there are {', '.join(LAYER_KINDS)}"
        if not (_is_whole(done) and _is_whole(total) and 0 <= done <= total):
            yield f"coverage says that {done} of {total} {kind} parameters are quantized"
            return
        covered += total
    if covered > parameters:
        yield f"coverage is of {covered} parameters, and the model has {parameters}"


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and -_ROUNDING <= value <= 1 + _ROUNDING
