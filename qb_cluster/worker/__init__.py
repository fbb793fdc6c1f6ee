"""Runs one stage of one cell; knows neither Ray nor the scheduler."""
