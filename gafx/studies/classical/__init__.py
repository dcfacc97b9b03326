"""Classical models on a table of features: fitting and comparing them, and pictures of the table."""
