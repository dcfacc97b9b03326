"""Scores as people read them: numbers, tables, figures, HTML pages."""
