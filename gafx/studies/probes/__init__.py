"""Probes: how much a simple reader finds in frozen maps or embeddings.

`subjects.py` says who is asked. On the synthetic set (`synthetic.py`, `page.py`): `factors.py` what is asked,
`features.py` maps as numbers, `linear.py` the probes with their cross-validation and tests. On real data (`real.py`,
`real_page.py`): `embeddings.py` and `classifiers.py`. `picture.py` draws both.
"""
