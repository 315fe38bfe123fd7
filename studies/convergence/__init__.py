"""Figures 2, 5 and 6 of the paper: how the estimate of a spectrum converges."""
