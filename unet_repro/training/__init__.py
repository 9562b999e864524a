"""Samples, loss (Eq. 1), optimisation and checkpoints (Sec. 3), resumed bit for bit."""
