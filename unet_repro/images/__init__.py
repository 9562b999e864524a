"""Stacks of images (z, y, x): TIFF, PNG, JPEG, and what their metadata and labels mean."""
