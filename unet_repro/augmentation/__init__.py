"""One random deformation for image, labels and weights (Sec. 3.1).

Elastic 3x3 grid, rotation, shift, grey values.
"""
