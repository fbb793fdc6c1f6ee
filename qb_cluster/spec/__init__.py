"""YAML to a validated sweep spec."""

from qb_cluster.spec.entries import named_backend, named_scheme
from qb_cluster.spec.load import load_spec
from qb_cluster.spec.schema import json_schema
from qb_cluster.spec.support import (
    Resolution,
    ask_support,
    extra_of,
    kind_of,
    not_installed,
    on_gpu,
    resolve,
    simulates,
    takes,
)
from qb_cluster.spec.sweep import (
    NamedBackend,
    NamedScheme,
    Override,
    Product,
    Requested,
    Settings,
    SweepSpec,
    effective,
    label_of,
)

__all__ = [
    "NamedBackend",
    "NamedScheme",
    "Override",
    "Product",
    "Requested",
    "Resolution",
    "Settings",
    "SweepSpec",
    "ask_support",
    "effective",
    "extra_of",
    "json_schema",
    "kind_of",
    "label_of",
    "load_spec",
    "named_backend",
    "named_scheme",
    "not_installed",
    "on_gpu",
    "resolve",
    "simulates",
    "takes",
]
