"""Parquet tables: schema, atomic commit, resume."""
