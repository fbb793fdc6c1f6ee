"""Comparison tables from the store."""

from qb_cluster.report.write import write_report

__all__ = ["write_report"]
