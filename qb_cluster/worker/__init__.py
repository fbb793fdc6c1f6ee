"""Runs one stage of one cell; knows neither Ray nor the scheduler."""

from qb_cluster.worker.worker import Worker

__all__ = ["Worker"]
