"""Training: a configuration to a finished run."""
