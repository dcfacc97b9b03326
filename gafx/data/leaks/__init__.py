"""Copies of test audio among the training audio."""
