"""The subcommands of tools/analyze.py, one module each."""
