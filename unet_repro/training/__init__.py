"""Samples, loss (Eq. 1), optimisation and checkpoints (Sec. 3).

A run goes on after a kill, bit for bit.
"""
