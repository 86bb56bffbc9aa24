"""The experiment runner's parts; docs/evidence.md tells how a stage, a claim or a table is added."""
