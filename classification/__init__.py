"""Image classification: data sets, training and evaluation. `run` is the door."""
