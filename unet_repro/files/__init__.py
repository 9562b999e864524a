"""Files that may be damaged, locked or half written, and finished blocks on disc.

Knows no image: bytes, names and arrays only.
"""
