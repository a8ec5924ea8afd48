"""Pictures of finished runs: `score`, `compare` and `calibrate` each have a `make_figure`.

What explains a panel stands between its title and its frame, where nothing is drawn, so that no
text ever lies on the data or on another text.
"""
