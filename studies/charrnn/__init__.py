"""The paper's character task: spectra over training, and against the validation loss."""
