"""Building blocks shared by front-ends and classifiers."""
