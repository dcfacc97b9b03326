"""Saved models: metadata, card, hub, weights."""
