"""Trained models in people's hands: label files, picture them, export, a page to try."""
