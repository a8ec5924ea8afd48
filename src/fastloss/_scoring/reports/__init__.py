"""Reports: what a run found, as JSON types and as text for people.

`score`, `compare` and `calibrate` have two functions each: `as_json` and `as_text`.
"""
