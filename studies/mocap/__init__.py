"""The paper's motion task: spectra against the validation loss, over the initial weights."""
