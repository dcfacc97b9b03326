"""Objectives: what a model is trained to predict, its loss, and how predictions are scored and described."""
