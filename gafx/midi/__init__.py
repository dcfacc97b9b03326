"""Music as notes: MIDI files read and written, tokens, near-copies. Nothing here imports torch."""
