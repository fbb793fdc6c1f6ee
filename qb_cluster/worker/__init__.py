"""Runs one stage of one cell; knows neither Ray nor the scheduler."""

from qb_cluster.worker.site import Owner
from qb_cluster.worker.worker import Arrival, Worker

__all__ = ["Arrival", "Owner", "Worker"]
