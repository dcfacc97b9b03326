"""Fetch, verify and install data sets."""
