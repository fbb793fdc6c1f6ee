"""YAML to a validated sweep spec."""

from qb_cluster.spec.load import load_spec
from qb_cluster.spec.schema import json_schema
from qb_cluster.spec.support import Resolution, resolve
from qb_cluster.spec.sweep import (
    Axis,
    Match,
    NamedBackend,
    NamedScheme,
    Override,
    Product,
    Requested,
    Settings,
    SweepSpec,
    label_of,
)

__all__ = [
    "Axis",
    "Match",
    "NamedBackend",
    "NamedScheme",
    "Override",
    "Product",
    "Requested",
    "Resolution",
    "Settings",
    "SweepSpec",
    "json_schema",
    "label_of",
    "load_spec",
    "resolve",
]
