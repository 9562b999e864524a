"""Figures as tables, plots, previews and pages.

Reads what training and prediction have left.
"""
