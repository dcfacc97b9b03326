"""Generated music, measured: an n-gram model of the same tokens, and how generated pieces differ from real ones."""
