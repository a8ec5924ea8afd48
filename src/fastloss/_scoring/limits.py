"""Bounds on what is held in memory at a time, and on what a file may claim."""

# What is read of a compressed or columnar file at a time.
CHUNK_BYTES = 8 << 20
# Rows of an Arrow column that are looked at together, however short the first one is.
CHUNK_ROWS = 1 << 16
# A row of a compressed file is inflated as a whole: a longer one is refused.
MOST_ROW_BYTES = 1 << 30
# A .safetensors header of 100,000 tensors takes about 10 MB; parsed it takes several times that.
MOST_HEADER_BYTES = 16 << 20
# A zip's directory of 100,000 members takes that much, and Arrow's footer of 300,000 batches.
MOST_DIRECTORY_BYTES = 8 << 20
# NumPy 1 has no more dimensions.
MOST_DIMENSIONS = 32
# Stretches of a file that are shorter than a page cost more to ask for than to read.
PAGE_BYTES = 4096
# The name of a group, which text of a fixed length may hold.
MOST_TEXT_BYTES = 1 << 16
# A line of a .csv: with this many bytes there is room for 50,000 classes.
MOST_LINE_BYTES = 1 << 20
