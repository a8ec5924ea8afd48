"""The loss of a Spark frame, however many partitions and machines it has: map, then merge.

`mapInArrow` hands each partition to Python as Arrow record batches. A partition becomes one
`StreamingLoss` where it lies: two sums and two counts, pickled to a few hundred bytes, whatever the
size of the partition. Those come back, and merge in any order to what one call over all the rows
would give.

    pip install fastloss pyspark pyarrow pandas       # and Java 17 or later
    python examples/spark_streaming.py
"""

import os
import pickle
import sys
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

import fastloss
from fastloss.data import load_digits_logits

CRITERION = fastloss.CrossEntropyLoss(label_smoothing=0.1)


def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Map: the rows of a partition to one row that holds their accumulator."""
    part = fastloss.StreamingLoss(CRITERION)
    for batch in batches:
        if batch.num_rows == 0:
            continue
        # A list column's values lie one after the other: the same memory, seen as a matrix.
        values = batch.column("logits").flatten().to_numpy()
        part.update(values.reshape(batch.num_rows, -1), batch.column("label").to_numpy())
    yield pa.RecordBatch.from_pydict({"loss": [pickle.dumps(part)]})


def streaming_loss(rows: DataFrame) -> fastloss.StreamingLoss:
    """Merge the accumulators of all partitions of a frame with ``logits`` and ``label``."""
    total = fastloss.StreamingLoss(CRITERION)
    for row in rows.select("logits", "label").mapInArrow(score, "loss binary").toLocalIterator():
        total.merge(pickle.loads(row["loss"]))
    return total


def main() -> None:
    logits, labels = load_digits_logits()
    # This interpreter for the workers as well: the one that has fastloss.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = SparkSession.builder.master("local[2]").appName("fastloss").getOrCreate()
    # Stands for spark.read.parquet(...) of a data set that no machine could hold.
    rows = spark.createDataFrame(
        [(x.tolist(), int(t)) for x, t in zip(logits, labels, strict=True)],
        "logits array<float>, label int",
    ).repartition(4)
    total = streaming_loss(rows)
    print(total)
    assert np.isclose(total.compute(), CRITERION(logits, labels))
    spark.stop()


if __name__ == "__main__":
    main()
