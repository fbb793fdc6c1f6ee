"""Inference Runner and Metrics Comparator: quality, deviation, statistics, latency."""
