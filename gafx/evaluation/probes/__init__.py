"""Probes: how much a simple classifier reads from frozen maps or embeddings.

`factors.py` says what is asked, `subjects.py` who is asked, `features.py` turns their maps into numbers, `linear.py`
fits the probes with honest cross-validation, `synthetic.py` and `real.py` are the two questions of `gafx probe`.
"""
