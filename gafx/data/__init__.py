"""Data: clips to batches."""
