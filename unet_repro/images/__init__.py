"""Stacks of images in and out: TIFF, PNG, and what their metadata and labels mean.

Everything is read lazily, (z, y, x).
"""
