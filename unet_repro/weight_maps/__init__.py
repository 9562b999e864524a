"""From labels to the weight map of Eq. 2 (Sec. 3), in memory or slice by slice.

Class balance and border term.
"""
