"""Probes: simple classifiers and regressions on frozen maps or embeddings.

`subjects` names the front-ends and models. On the synthetic set (`synthetic`): `factors` are the targets, `features`
summarise maps, `linear` fits the probes with cross-validation. On other data (`real`): `embeddings` and `classifiers`.
Both return `findings.Probed`, which `page` writes and prints.
"""
