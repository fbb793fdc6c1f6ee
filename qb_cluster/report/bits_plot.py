"""A picture of quality against bit-width. Needs matplotlib: ``qb-cluster[plots]``."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from qb_cluster.report.bits import DB_PER_BIT, BitSeries

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWS: Final = "the metric and SQNR against bits, with a line of 6.02 dB a bit"

_MARKERS: Final = "osD^vP*Xd<>"
_STYLES: Final = ("-", "--", ":")
_COLOURS: Final = 10  # of matplotlib's default cycle
_ROW_INCHES: Final = 3.4
_LEGEND_LINE_INCHES: Final = 0.19
_WIDTH_INCHES: Final = 12.0
_SIDE_INCHES, _BELOW_INCHES, _ABOVE_INCHES = 0.75, 0.55, 0.35


def drawing_of(series: Sequence[BitSeries]) -> str:
    """Give the digest that a picture drawn by this very file of these series carries."""
    told = json.dumps([asdict(one) for one in series], default=np.ndarray.tolist)
    return hashlib.sha256(Path(__file__).read_bytes() + told.encode()).hexdigest()


def draw(series: Sequence[BitSeries], form: Literal["svg", "png"] = "svg") -> bytes:
    """Draw a row of panels for each model: the metric, SQNR, and the key to the lines.

    Args:
        series: at least one.
        form: of the file.

    Returns:
        The file's content; the same series give the same bytes.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows: dict[tuple[str, str, str, str, int], list[BitSeries]] = {}
    for one in series:
        place = one.model, one.dataset, one.metric, one.device, one.threads
        rows.setdefault(place, []).append(one)
    heights = [max(_ROW_INCHES, _LEGEND_LINE_INCHES * (len(group) + 3)) for group in rows.values()]
    height = sum(heights)
    figure = Figure(figsize=(_WIDTH_INCHES, height))
    grid = figure.subplots(
        len(rows), 3, squeeze=False, width_ratios=(1, 1, 0.75), height_ratios=heights
    )
    # Fixed margins: finding them by a layout engine takes as long as drawing does.
    figure.subplots_adjust(
        left=_SIDE_INCHES / _WIDTH_INCHES,
        right=1 - 0.1 / _WIDTH_INCHES,
        bottom=_BELOW_INCHES / height,
        top=1 - _ABOVE_INCHES / height,
        wspace=0.2,
        hspace=(_BELOW_INCHES + _ABOVE_INCHES) / (height / len(rows) - _ABOVE_INCHES),
    )
    for axes, (place, group) in zip(grid, rows.items(), strict=True):
        _draw_row(axes, place, group)
    buffer = io.BytesIO()
    # Text stays text: it can be searched and read aloud, and no glyph has to be drawn.
    with mpl.rc_context({"svg.hashsalt": "qb_cluster", "svg.fonttype": "none"}):
        metadata = {"Date": None, "Identifier": drawing_of(series)} if form == "svg" else None
        figure.savefig(buffer, format=form, dpi=110, metadata=metadata)
    return buffer.getvalue()


def _draw_row(
    axes: Sequence["Axes"], place: tuple[str, str, str, str, int], group: Sequence[BitSeries]
) -> None:
    model, dataset, metric, device, threads = place
    quality, noise, key = axes
    are_mixed = len({bool(flag) for one in group for flag in one.simulated}) > 1
    for number, one in enumerate(group):
        look: dict[str, Any] = {
            "color": f"C{number % _COLOURS}",
            "marker": _MARKERS[number % len(_MARKERS)],
            "linestyle": _STYLES[number // _COLOURS % len(_STYLES)],
            "markersize": 4.5,
            "linewidth": 1.3,
        }
        for panel, heights in ((quality, one.value), (noise, one.sqnr_db)):
            shown = np.where(np.isfinite(heights), heights, np.nan)
            # No line across a width that was asked for and not had.
            gaps = np.searchsorted(one.bits, one.missing)
            broken = np.insert(one.bits, gaps, one.missing), np.insert(shown, gaps, np.nan)
            [line] = panel.plot(*broken, label=one.label, **look)
            if are_mixed:
                marked = np.isin(broken[0], one.bits[~one.simulated])
                line.set_markevery([int(i) for i in np.flatnonzero(marked)])
                panel.plot(
                    one.bits[one.simulated],
                    shown[one.simulated],
                    **look | {"linestyle": "none"},
                    markerfacecolor="white",
                )
        for panel, name in ((quality, "value"), (noise, "sqnr_db")):
            _draw_partial(panel, one, name, look["color"])
    for number, height in enumerate(sorted({one.baseline_value for one in group})):
        quality.axhline(height, color="0.4", linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
        if number == 0:
            quality.plot([], [], color="0.4", linewidth=0.9, linestyle=(0, (1, 2)), label="float")
    _draw_law(noise, group)
    where = f"{dataset} on {device}, {threads} thread{'' if threads == 1 else 's'}"
    quality.set_title(f"{model} · {where}", fontsize=10, loc="left", parse_math=False)
    quality.set_ylabel(metric, parse_math=False)
    noise.set_ylabel("SQNR of the outputs in dB")
    partial = {point.bits for one in group for point in one.partial}
    widths = sorted({int(bits) for one in group for bits in one.bits} | partial)
    for panel in (quality, noise):
        panel.set_xlabel("bits")
        panel.set_xticks(widths)
        panel.grid(visible=True, color="0.92")
    _draw_key(key, (quality, noise), are_mixed=are_mixed)


def _draw_partial(panel: "Axes", one: BitSeries, name: str, colour: str) -> None:
    """Draw cells that quantized only a part as crosses off the line, with how much they did."""
    for point in one.partial:
        height = getattr(point, name)
        if np.isfinite(height):
            panel.plot(point.bits, height, color=colour, marker="x", linestyle="none")
            panel.annotate(
                point.words,
                (point.bits, height),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
                color=colour,
                parse_math=False,
            )


def _draw_law(noise: "Axes", group: Sequence[BitSeries]) -> None:
    """Draw a line of 6.02 dB a bit a little above the fitted lines, to hold them against."""
    offsets = [
        one.fit.intercept_db + (one.fit.db_per_bit - DB_PER_BIT) * (one.fit.low + one.fit.high) / 2
        for one in group
        if one.fit is not None
    ]
    if not offsets:
        return
    reach = np.array([min(one.bits[0] for one in group), max(one.bits[-1] for one in group)])
    heights = DB_PER_BIT * reach + max(offsets) + DB_PER_BIT
    noise.plot(reach, heights, color="0.2", linewidth=1, linestyle="--", label="6.02 dB per bit")


def _draw_key(key: "Axes", panels: Sequence["Axes"], *, are_mixed: bool) -> None:
    """Name each line once, in a panel of its own: many lines leave no room beside them."""
    handles: dict[str, Any] = {}
    for panel in panels:
        lines, labels = panel.get_legend_handles_labels()
        handles |= dict(zip(labels, lines, strict=True))
    key.axis("off")
    legend = key.legend(
        handles.values(),
        handles.keys(),
        loc="center left",
        fontsize=8,
        frameon=False,
        title="hollow: simulated" if are_mixed else None,
        title_fontsize=8,
        alignment="left",
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar in a label is a dollar
