"""Data sets: a root folder to a manifest."""
