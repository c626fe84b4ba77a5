"""Files of weights: recognised by content, read without running code, loaded strictly, converted."""
