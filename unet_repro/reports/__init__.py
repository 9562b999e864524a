"""Tables, plots, previews and pages of what training and prediction have left."""
