"""What the usage actor keeps beside the log: checkpoints, identities, horizons, erasures."""
