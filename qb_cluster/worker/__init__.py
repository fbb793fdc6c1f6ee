"""Runs one stage of one cell; knows neither Ray nor the scheduler."""

from qb_cluster.worker.site import ASK_AGAIN_S, Owner
from qb_cluster.worker.worker import Arrival, Worker

__all__ = ["ASK_AGAIN_S", "Arrival", "Owner", "Worker"]
