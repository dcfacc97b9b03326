"""Finished runs to predictions, metrics and a report."""
