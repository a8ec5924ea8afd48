"""The work behind the command line, apart from the command line itself.

- `readers`, `sources`, `inputs`: files, folders and columns as a `Source` that hands out blocks of
  rows; `limits` has the bounds on memory.
- `layout`, `blocks`: which arrays belong together, and the engine that walks them on several
  threads.
- `scorer` and `totals` (score), `comparison` (compare), `tempering` (calibrate): what every sample
  gets, and what all of them add up to; `distributions`, `quantiles`, `groups`, `statistics`: the
  sums, of a fixed size, that they are made of.
- `reports`, `plots`, `writers`: JSON and text, pictures, and files that appear whole or not at all.
- `terminal`: progress, results, errors in one line.

Only `terminal` prints, and every fault of the user's input is an `InputError` whose text is one
line.
"""


class InputError(Exception):
    """A file, shape, name or option that can't be scored; the message is for the user."""


def plural(count: int, noun: str) -> str:
    """Return a number of things in words: 1 sample, 2 classes."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"
