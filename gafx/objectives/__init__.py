"""Objectives: a model and its loss."""
