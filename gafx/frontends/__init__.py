"""Front-ends: waves to maps."""
