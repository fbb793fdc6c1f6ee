"""The tables of a run folder: columns, types, units and meanings, in one place.

Every table is a folder of Parquet parts with exactly these columns. Units are in the names,
null means "not measured" or "does not apply" and is never written as zero or NaN, and the
version of this layout is in every file's metadata.
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

import pyarrow as pa
from tabulate import tabulate

SCHEMA_VERSION: Final = 7

TableName = Literal[
    "results", "predictions", "samples", "layers", "stages", "environments", "sweeps"
]
TABLES: Final[tuple[TableName, ...]] = get_args(TableName)

_TEXT, _INT, _SHORT, _REAL = pa.string(), pa.int64(), pa.int16(), pa.float64()
_TIME = pa.timestamp("us", tz="UTC")
_TEXTS, _INTS = pa.list_(_TEXT), pa.list_(_INT)


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: with its unit, where it has one.
        type: Arrow type; always nullable.
        meaning: one clause for the docs and for the field's metadata.
    """

    name: str
    type: pa.DataType
    meaning: str


RESULTS: Final = (
    Column("cell_id", _TEXT, "the row's key: a hash of the resolved cell"),
    Column("sweep", _TEXT, "name of the sweep"),
    Column("model", _TEXT, "label of the model"),
    Column("dataset", _TEXT, "label of the dataset"),
    Column("backend", _TEXT, "label of the backend"),
    Column("device", _TEXT, "name of the device"),
    Column("scheme", _TEXT, "label of the scheme; `float` for a baseline"),
    Column("bits", _TEXT, "`wN` or `wNaM`; `f32` for a baseline"),
    Column("weight_bits", _SHORT, "bits asked for per weight; 32 for a baseline"),
    Column("activation_bits", _SHORT, "bits asked for per activation; 32 where they stay float"),
    Column("execution", _TEXT, "`native` or `simulated`; null where no backend can"),
    Column("status", _TEXT, "`ok`, or the way in which the cell failed"),
    Column("error", _TEXT, "why it is not ok, in a sentence or two"),
    Column("traceback", _TEXT, "the Python traceback of the error"),
    Column("story", _TEXT, "attempts that never came back: when, where, what, last log lines"),
    Column("baseline_cell_id", _TEXT, "the float cell it is compared with; its own for a baseline"),
    Column("metric", _TEXT, "label of the metric; higher is better"),
    Column("value", _REAL, "the metric of this cell, in the metric's unit"),
    Column("baseline_value", _REAL, "the metric of the float baseline on the same examples"),
    Column("delta", _REAL, "value - baseline_value"),
    Column("delta_low", _REAL, "lower end of the interval of delta"),
    Column("delta_high", _REAL, "upper end of the interval of delta"),
    Column("confidence", _REAL, "confidence level of every interval in the row, such as 0.95"),
    Column("p_value", _REAL, "exact McNemar test, two-sided"),
    Column("flips_worse", _INT, "examples right in float and wrong here"),
    Column("flips_better", _INT, "examples wrong in float and right here"),
    Column("top1_agreement", _REAL, "share of examples with the same largest output, 0 to 1"),
    Column("sqnr_db", _REAL, "10 log10(Σx² / Σ(x-y)²) over all outputs; infinite when equal"),
    Column("cosine", _REAL, "cosine between the float outputs and these, over all outputs"),
    Column("max_abs_error", _REAL, "largest |x-y|, in the unit of the output"),
    Column("simulator", _TEXT, "the backend whose simulation a native cell was checked against"),
    Column("reference_sqnr_db", _REAL, "SQNR of that simulation of the same scheme against float"),
    Column("reference_agreement", _REAL, "top-1 agreement of this cell with that simulation"),
    Column("recipe_gap_db", _REAL, "SQNR of that simulation less that of the artifact itself"),
    Column(
        "kernel_worst_db", _REAL, "most noise the kernels add to an example, over the artifact's"
    ),
    Column("baseline_sqnr_db", _REAL, "of a baseline: SQNR against the model in its own framework"),
    Column("baseline_doubt", _TEXT, "why no change from the float baseline means anything"),
    Column("outputs_digest", _TEXT, "its outputs are in `artifacts/`, under this name, as `.npy`"),
    Column("artifact_bytes", _INT, "size of the artifact; null where simulated"),
    Column("baseline_artifact_bytes", _INT, "size of the float artifact"),
    Column("weight_bytes", _INT, "bytes of the parameters in it, scales included"),
    Column("effective_bits", _TEXT, "where this CPU's kernels are narrower than `bits`: theirs"),
    Column("bits_per_weight", _REAL, "bits really stored per parameter; null where simulated"),
    Column("quantized_share", _REAL, "share of the parameters really quantized, 0 to 1"),
    Column("integer_mac_share", _REAL, "share of multiply-accumulates in integers, 0 to 1"),
    Column(
        "integer_layer_mac_share",
        _REAL,
        "the same over products whose weights the scheme covers; those inside attention have none",
    ),
    Column("coverage", _TEXT, "parameters quantized and covered, by kind of layer, as JSON"),
    Column("covered_share", _REAL, "share of the covered weights really quantized, 0 to 1"),
    Column("activation_scope", _TEXT, "activations rounded: `inputs`, `layers` or `all`"),
    Column("fallback_ops", _TEXTS, "ops that stayed float though the scheme covers them"),
    Column("notes", _TEXTS, "caveats and surprises"),
    Column("latency_median_ns", _INT, "time of one example: geometric mean of the blocks' medians"),
    Column("latency_iqr_ns", _INT, "its interquartile range"),
    Column("baseline_latency_median_ns", _INT, "the same of the float arm, timed in turn with it"),
    Column("baseline_latency_iqr_ns", _INT, "its interquartile range"),
    Column("speedup", _REAL, "float time / quantized time, geometric mean over the blocks"),
    Column("speedup_low", _REAL, "lower end of the interval of the speed-up"),
    Column("speedup_high", _REAL, "upper end of the interval of the speed-up"),
    Column("speedup_verdict", _TEXT, "`faster`, `slower`, `equivalent` or `undecided`"),
    Column("latency_runs", _INT, "timed runs of each arm"),
    Column("latency_flags", _TEXTS, "what was unfair about the timing, such as `noisy`"),
    Column("first_inference_ns", _INT, "time of the very first run"),
    Column("prepare_ns", _INT, "time to convert, calibrate and quantize"),
    Column("open_ns", _INT, "time to load the artifact into the runtime"),
    Column("peak_memory_bytes", _INT, "most memory it took on its device, as its runtime tells"),
    Column("examples", _INT, "evaluation examples"),
    Column("dataset_examples", _INT, "examples of the whole dataset, calibration part included"),
    Column("batch_size", _INT, "examples to a call in the quality stage"),
    Column("threads", _INT, "threads of the runtime"),
    Column("host", _TEXT, "name of the machine that ran its last stage"),
    Column("arch", _TEXT, "that machine's processor architecture, such as `aarch64`"),
    Column("board", _TEXT, "what that machine calls itself; null where it does not say"),
    Column("accelerator", _TEXT, "name of the GPU it ran on; null on the processor"),
    Column("runtime", _TEXT, "what ran it, apart from what made it: `tflite-runtime 2.14.0`"),
    Column("affinity", _INTS, "cores the worker was pinned to"),
    Column("niceness", _INT, "niceness of the worker"),
    Column("foreign_cores", _REAL, "cores that others kept busy while it was timed"),
    Column("calibration_samples", _INT, "calibration examples used at most"),
    Column("calibration_seed", _INT, "which of them"),
    Column("calibration_observer", _TEXT, "how ranges were taken from them"),
    Column("calibration_percentile", _REAL, "of the observer `percentile`; null for others"),
    Column("attempt", _INT, "how often its last stage was tried; 0 where none was"),
    Column("started_at", _TIME, "start of the first stage"),
    Column("finished_at", _TIME, "end of the last stage"),
    Column("reused", _TEXTS, "what its stages found ready, such as `model` and `baseline`"),
    Column("content_key", _TEXT, "hash of all that can change its numbers, once loaded"),
    Column("env_id", _TEXT, "key into `environments`"),
    Column("spec_digest", _TEXT, "key into `sweeps`"),
)

_COLUMNS: Final[dict[TableName, tuple[Column, ...]]] = {
    "results": RESULTS,
    "predictions": (
        Column("cell_id", _TEXT, "key into `results`"),
        Column("example_id", _TEXT, "the dataset's stable id"),
        Column("target", _INT, "class index of the target; null where it is no class"),
        Column("predicted", _INT, "index of the largest output; null where there are no classes"),
        Column("score", _REAL, "the metric's value for the example; null where it has none"),
    ),
    "samples": (
        Column("cell_id", _TEXT, "key into `results`"),
        Column("attempt", _INT, "the attempt that took them"),
        Column("block", _INT, "number of the ABBA block, from 0"),
        Column("position", _INT, "order within the block, from 0"),
        Column("arm", _TEXT, "`baseline` or `quantized`"),
        Column("latency_ns", _INTS, "times of single runs, in the order taken"),
    ),
    "layers": (
        Column("cell_id", _TEXT, "key into `results`"),
        Column("layer", _TEXT, "name of the layer in the model"),
        Column("parameters", _INT, "of its weight"),
        Column("macs", _INT, "its multiply-accumulates for one example"),
        Column("mode", _TEXT, "`only` this layer is quantized, or `all_but` this one"),
        Column("bits", _TEXT, "`wN` or `wNaM`, of what is quantized"),
        Column("sqnr_db", _REAL, "of the model's outputs against float"),
        Column("weight_sqnr_db", _REAL, "of the layer's own weight; null in mode `all_but`"),
        Column("expected_weight_sqnr_db", _REAL, "what a Gaussian tensor of these rows would give"),
        Column("kind", _TEXT, "kind of layer, such as `linear` or `embedding`"),
        Column("shape", pa.list_(_INT), "of its weight, output channels first"),
        Column("weight", _TEXT, "the layer whose weight it is; another one where they share it"),
        Column(
            "same_bits",
            pa.list_(_TEXT),
            "layers that take the same bits: they share a weight, or files store theirs as one",
        ),
    ),
    "stages": (
        Column("cell_id", _TEXT, "the cell that the stage belongs to"),
        Column("stage", _TEXT, "`quality`"),
        Column("status", _TEXT, "`ok`"),
        Column("attempt", _INT, "which attempt succeeded, from 1"),
        Column("started_at", _TIME, "start of the stage"),
        Column("finished_at", _TIME, "end of the stage"),
        Column("env_id", _TEXT, "key into `environments`"),
        Column("values_json", _TEXT, "the columns of the result row that it found"),
        Column("quality_json", _TEXT, "the artifact and outputs it left for later stages"),
    ),
    "environments": (
        Column("env_id", _TEXT, "key"),
        Column("environment_json", _TEXT, "machine, libraries and settings of a worker"),
    ),
    "sweeps": (
        Column("spec_digest", _TEXT, "key: digest of the spec"),
        Column("sweep", _TEXT, "name of the sweep"),
        Column("spec_text", _TEXT, "the spec, as it was given"),
        Column("qb_cluster_version", _TEXT, "version of QuantBench that first ran it"),
        Column("recorded_at", _TIME, "when it was first run into this folder"),
    ),
}


def _schema(table: TableName) -> pa.Schema:
    fields = [
        pa.field(column.name, column.type, metadata={"description": column.meaning})
        for column in _COLUMNS[table]
    ]
    tag = {"qb_cluster.table": table, "qb_cluster.schema_version": str(SCHEMA_VERSION)}
    return pa.schema(fields, metadata=tag)


SCHEMAS: Final = {table: _schema(table) for table in TABLES}


def columns_markdown(table: TableName = "results") -> str:
    """Describe a table's columns as a Markdown table: name, type, meaning."""
    rows = [
        (f"`{column.name}`", str(column.type), column.meaning.replace("|", r"\|"))
        for column in _COLUMNS[table]
    ]
    return str(tabulate(rows, headers=("column", "type", "meaning"), tablefmt="github"))
