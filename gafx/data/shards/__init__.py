"""Audio in Parquet shards, in the layout that Hugging Face `datasets` uses: reading them at random, and writing them.

A row is a clip: a column `audio` of struct{bytes, path}, columns of labels, and in the schema's metadata what they
mean (`layout`). Parquet is made for scans; an index, built once, says where in the files each clip's bytes are
(`index`, `scan`), after which a clip is read like any other file and Parquet is not opened again.
"""
