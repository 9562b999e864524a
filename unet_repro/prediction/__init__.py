"""The overlap-tile strategy (Sec. 2, Fig. 2): tiles planned, computed, kept, verified.

In memory (`predictor`) and streamed (`predict_stack`).
"""
