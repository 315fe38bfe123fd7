"""Table 1 of the paper: what a spectrum costs, in units of training."""
