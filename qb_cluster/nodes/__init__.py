"""What this machine is: fingerprint, cores, noise."""
