"""Tools of the researcher: ablations, probes, pictures, the built-in music."""
