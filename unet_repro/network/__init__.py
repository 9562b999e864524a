"""The U-Net of Fig. 1: its layers, sizes, cost and file, and the ways to run it.

Sec. 2; the initialisation is of Sec. 3.
"""
