"""Functions behind experiments of kind ``measure``; each takes a Context and returns a dict (docs/evidence.md)."""
