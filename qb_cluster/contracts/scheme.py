"""Quantization schemes: what is quantized, how finely, and by which arithmetic."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from qb_cluster.contracts.bits import Bits
from qb_cluster.contracts.calibration import Calibration
from qb_cluster.contracts.coverage import LAYER_KINDS, SCOPES, LayerKind, Scope

Activations = Literal["none", "dynamic", "static"]
Execution = Literal["native", "simulated"]
Granularity = Literal["per_tensor", "per_channel", "per_group"]
NumberFormat = Literal["integer", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2"]
WeightRange = Literal["minmax", "mse", "signed_max"]
WeightQuantizer = Callable[[NDArray[np.float32], int], NDArray[np.float32]]

FLOAT: Final = "float"
"""In ``Scheme.layers``: leave these layers as they are."""
_FORMAT_BITS: Final[dict[NumberFormat, Bits]] = {
    "fp16": Bits(16, 16),
    "bf16": Bits(16, 16),
    "fp8_e4m3": Bits(8),
    "fp8_e5m2": Bits(8),
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """A scheme without its bit-widths.

    Attributes:
        name: what reports call it.
        activations: ``none`` leaves activations float (the scheme takes ``wN``); ``dynamic``
            finds each example's range while running; ``static`` fixes ranges on calibration
            data beforehand (both take ``wNaM``).
        number: ``integer``, or a float format that weights (and, for the 16-bit ones, the whole
            computation) are rounded to; a float format fixes the bits.
        granularity: one weight scale per tensor, per output channel (axis 0), or per group of
            ``group_size`` consecutive inputs of an output channel.
        group_size: given exactly with ``per_group``; 2 or more.
        symmetric: whether the weight range is symmetric about zero; else affine over all
            2^bits levels.
        narrow_range: symmetric integers span ±(2^(bits-1) - 1); else -2^(bits-1) … 2^(bits-1) - 1.
        weight_range: ``minmax`` covers every weight; ``mse`` clips where the squared error of
            the rounded weights is smallest; ``signed_max`` makes the weight of largest magnitude
            exactly -2^(bits-1), by a scale of either sign (symmetric, without narrow range).
        symmetric_activations: the same as ``symmetric``, for activations.
        layers: bits of their own for layers by name, as (pattern with ``*``, bits or
            ``float``); the first match counts.
        weight_quantizer: arithmetic of the user's own: takes float32 weights of any shape
            (output channels on axis 0) and a bit-width, returns the dequantized float32
            weights of the same shape. Such a scheme can only be simulated.
        weights: the kinds of layers that it covers.
        scope: which activations it rounds, where it rounds any; ``None`` leaves that to the
            backend, which says what it does, see ``Support.scope``.
    """

    name: str
    activations: Activations = "none"
    _: KW_ONLY
    number: NumberFormat = "integer"
    granularity: Granularity = "per_channel"
    group_size: int | None = None
    symmetric: bool = True
    narrow_range: bool = True
    weight_range: WeightRange = "minmax"
    symmetric_activations: bool = False
    layers: tuple[tuple[str, str], ...] = ()
    weight_quantizer: WeightQuantizer | None = None
    weights: tuple[LayerKind, ...] = LAYER_KINDS
    scope: Scope | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ValueError: the group size and the granularity, a layer's bits and the scheme's
                form, or a float format and integer options do not go together; a kind of layer
                or a scope is not known.
        """
        if (self.group_size is None) == (self.granularity == "per_group"):
            raise ValueError("group_size is given with granularity per_group, and only with it")
        if self.group_size is not None and self.group_size < 2:
            raise ValueError(f"group_size is 2 or more, not {self.group_size}")
        if self.weight_range == "signed_max" and (not self.symmetric or self.narrow_range):
            raise ValueError(
                "weight_range signed_max is symmetric and takes the full range: give symmetric: "
                "true and narrow_range: false with it"
            )
        if self.number != "integer" and (self.activations != "none" or self.layers):
            raise ValueError(f"{self.number} takes neither quantized activations nor layers")
        self._check_coverage()
        for pattern, bits in self.layers:
            if not isinstance(bits, str):
                raise ValueError(f"layers '{pattern}': write bits as text, w8, not {bits!r}")  # noqa: TRY004 - it comes from YAML
            if bits != FLOAT and not self.takes(Bits.parse(bits)):
                raise ValueError(f"layers '{pattern}': {self.name} does not take {bits}")

    def _check_coverage(self) -> None:
        if unknown := [kind for kind in self.weights if kind not in LAYER_KINDS]:
            known = ", ".join(LAYER_KINDS)
            raise ValueError(f"weights: '{unknown[0]}' is no kind of layer; there are {known}")
        if not self.weights:
            raise ValueError("weights: name one kind of layer at least")
        if self.scope is not None and self.scope not in SCOPES:
            raise ValueError(f"activations: '{self.scope}' is none of {', '.join(SCOPES)}")
        if self.scope is not None and self.activations == "none":
            raise ValueError(f"activations: {self.name} leaves all activations float")

    @property
    def fixed_bits(self) -> Bits | None:
        """The only bits of a float format; ``None`` for integers, which take any."""
        return _FORMAT_BITS.get(self.number)

    def scope_or(self, default: Scope) -> Scope | None:
        """Tell which activations are rounded; ``None`` where none are.

        Args:
            default: for static ranges, where the scheme leaves it open; ranges that are found
                while running are those of inputs.
        """
        if self.activations == "none":
            return None
        return self.scope or ("inputs" if self.activations == "dynamic" else default)

    def takes(self, bits: Bits) -> bool:
        """Tell whether the bit-width has this scheme's form."""
        if self.fixed_bits is not None:
            return bits == self.fixed_bits
        return (bits.activation is None) == (self.activations == "none")


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a backend is asked to do to a float model.

    Attributes:
        calibration: how static activation ranges are found; given exactly when the scheme's
            activations are static.
    """

    scheme: Scheme
    bits: Bits
    execution: Execution
    calibration: Calibration | None = None

    def layer_bits(self, layer: str) -> Bits | None:
        """Give the bits of a layer by its name in the model; ``None`` leaves it float."""
        for pattern, bits in self.scheme.layers:
            if fnmatchcase(layer, pattern):
                return None if bits == FLOAT else Bits.parse(bits)
        return self.bits
