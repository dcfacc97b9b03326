"""Building blocks that parts share."""
