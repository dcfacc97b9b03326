"""The packed int16 cache: encode, write, read."""
