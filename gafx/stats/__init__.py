"""Scores, paired tests and calibration."""
