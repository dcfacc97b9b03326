"""Data sets: from a root folder to a manifest."""
