"""Pictures of finished runs: `score`, `compare` and `calibrate` have a function `make_figure` each.

What explains a panel stands between its title and its frame, where nothing is drawn, so that no text
ever lies on the data or on another text.
"""
