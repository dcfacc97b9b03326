"""Classifiers: maps to logits."""
