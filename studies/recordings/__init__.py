"""Studies whose every trial ran to the end, recorded so that pruners can be judged on them."""
