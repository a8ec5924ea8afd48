"""The work behind `fastloss score`, apart from the command line itself.

- `readers`: a file, or a tensor or column of one, as a `Source` that hands out blocks of rows.
- `scorer`: sources in, totals, hardest samples and distributions out, block by block.
- `writers`: per-sample results into a .npy, .csv or .parquet file that appears whole or not at all.
- `plot`: the picture of a finished run.

Nothing here prints, and every fault of the user's input is an `InputError` whose text is one line.
"""


class InputError(Exception):
    """A file, shape, name or option that can't be scored; the message is for the user."""
