"""Stacks of images (z, y, x) in and out: TIFF, PNG, and what their metadata and labels mean."""
