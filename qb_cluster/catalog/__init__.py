"""Model Interface and datasets: what a name in the YAML means."""
