"""Audio in Parquet shards, in the layout of Hugging Face `datasets`: random access, and writing.

A row is a clip: a column `audio` of struct{bytes, path}, columns of labels, and their meaning in the schema's metadata
(`layout`). Parquet is made for sequential scans; an index, built once, records the offsets of each clip's bytes in the
files (`index`, `scan`). After that a clip is read like any other file, without Parquet.
"""
