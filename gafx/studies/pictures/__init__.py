"""Pictures of a trained run: what its filters are tuned to, where it looked, how its embeddings lie.

`filters.py` the first layer's frequency responses, `saliency.py` gradients over the map, `embedding.py` two dimensions
of many and how features hang together, `figures.py` draws them, `page.py` makes the page of `gafx pictures`.
"""
