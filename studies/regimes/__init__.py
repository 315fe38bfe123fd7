"""Figure 1 of the paper: three stability regimes of a driven tanh network."""
