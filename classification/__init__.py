"""Image classification: data sets, training and evaluation. `run` has the entry points."""
