"""Hyperparameter search on both tasks of the paper, with and without pruning."""
