"""mini-COCO: a COCO-format instance segmentation set drawn from code alone (see docs/minicoco.md)."""
