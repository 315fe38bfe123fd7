"""Figure 7 of the paper: every statistic of the spectrum against the validation loss."""
