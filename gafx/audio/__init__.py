"""Audio files: formats, reading, decoding, integrity checks."""
