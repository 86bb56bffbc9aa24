"""Checkpoint files: reading any framework's weights safely, converting dialects, writing whole files."""
