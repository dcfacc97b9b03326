"""Figures of a trained run: its first-layer filters, gradients over its maps, and its embeddings.

`filters` computes the first layer's frequency responses, `saliency` gradients over the map, `embedding` projections to
two dimensions and correlations of features; `figures` draws them, `page` writes the page of `gafx pictures`.
"""
