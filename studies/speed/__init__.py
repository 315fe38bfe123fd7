"""What readouts and spectra cost, and how far they are off: one run, one machine."""
