"""Integer inference: the calibrated model as integer modules."""
