"""Estimators of scikit-learn on tables of features: computing, folds, tuning, and heads saved as gafx models."""
