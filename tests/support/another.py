"""A cell with all that can be in one, and copies in which one field holds something else."""

from copy import copy

from qb_cluster.contracts import Bits, Calibration, Cell, Content, Device, Measure, Ref

CELL = Cell(
    cell_id="c",
    sweep="s",
    model=Ref("m", "m"),
    dataset=Ref("d", "d"),
    backend=Ref("b", "b"),
    device=Device(),
    scheme=Ref("static", "static"),
    bits=Bits(4, 8),
    execution="native",
    reason="",
    calibration=Calibration(),
    measure=Measure(),
    timeout_s=60,
    baseline_cell_id="c0",
)
KNOWN = Content("m", "d", "b", "a")


def with_field(value, name):
    """A copy whose field holds something else, whatever the class would say to it."""
    changed = copy(value)
    object.__setattr__(changed, name, "another")
    return changed
