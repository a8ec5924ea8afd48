"""Score a column of a Polars frame: the loss of every row, as one more column.

Logits lie in a fixed-size-array column, labels beside them. Polars hands both to fastloss as a
struct, without a copy, and gets the losses back; then they are a column like any other, here to
find the digits that the classifier finds hardest.

    pip install fastloss polars
    python examples/polars_column.py
"""

import numpy as np
import polars as pl

import fastloss
from fastloss.data import load_digits_logits


def losses(rows: pl.Series) -> pl.Series:
    """The loss of each row of a struct of ``logits`` and ``label``."""
    logits = rows.struct.field("logits").to_numpy()
    label = rows.struct.field("label").to_numpy()
    return pl.Series(fastloss.cross_entropy(logits, label, reduction="none"))


def with_losses(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Add the column ``loss`` to a lazy frame with the columns ``logits`` and ``label``."""
    # Each row's loss depends on that row alone, so Polars may stream the frame in pieces.
    rows = pl.struct("logits", "label")
    return frame.with_columns(
        rows.map_batches(losses, return_dtype=pl.Float32, is_elementwise=True).alias("loss")
    )


def main() -> pl.DataFrame:
    logits, labels = load_digits_logits()
    frame = pl.LazyFrame(
        {
            "logits": pl.Series(logits, dtype=pl.Array(pl.Float32, logits.shape[1])),
            "label": labels,
        }
    )
    by_label = (
        with_losses(frame)
        .group_by("label")
        .agg(pl.len().alias("images"), pl.mean("loss").alias("mean loss"), pl.max("loss"))
        .sort("mean loss", descending=True)
        .collect()
    )
    print(by_label)
    mean = (by_label["images"] * by_label["mean loss"]).sum() / len(labels)
    assert np.isclose(mean, fastloss.cross_entropy(logits, labels))
    return by_label


if __name__ == "__main__":
    main()
