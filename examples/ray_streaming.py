"""The loss of a Ray data set, however many blocks and machines it has: map, then merge.

Each batch becomes a `StreamingLoss` on the worker that holds it. An accumulator is two sums and two
counts, pickled to a few hundred bytes, whatever the size of its batch; those come back, and merge
in any order to what one call over all the rows would give.

    pip install fastloss 'ray[data]'
    python examples/ray_streaming.py
"""

import pickle

import numpy as np
import ray

import fastloss
from fastloss.data import load_digits_logits

CRITERION = fastloss.CrossEntropyLoss(label_smoothing=0.1)


def score(batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
    """Map: a batch of rows to one row that holds their accumulator."""
    part = fastloss.StreamingLoss(CRITERION).update(batch["logits"], batch["label"])
    return {"loss": [pickle.dumps(part)]}


def streaming_loss(rows: ray.data.Dataset, batch_size: int) -> fastloss.StreamingLoss:
    """Merge the accumulators of all batches of a data set with ``logits`` and ``label``."""
    total = fastloss.StreamingLoss(CRITERION)
    for row in rows.map_batches(score, batch_size=batch_size).iter_rows():
        total.merge(pickle.loads(row["loss"]))
    return total


def main() -> None:
    logits, labels = load_digits_logits()
    ray.init(num_cpus=2, include_dashboard=False)
    # Stands for ray.data.read_parquet(...) of a data set that no machine could hold.
    rows = ray.data.from_items(
        [{"logits": x, "label": int(t)} for x, t in zip(logits, labels, strict=True)],
        override_num_blocks=4,
    )
    total = streaming_loss(rows, batch_size=256)
    print(total)
    assert np.isclose(total.compute(), CRITERION(logits, labels))
    ray.shutdown()


if __name__ == "__main__":
    main()
