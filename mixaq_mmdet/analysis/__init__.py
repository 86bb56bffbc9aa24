"""What a two-branch model costs and does: numbers and pictures on top of the models."""
