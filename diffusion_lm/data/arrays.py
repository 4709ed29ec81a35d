"""What every data set shares: batches of the rows of arrays, and folders that are whole."""

import os
import pathlib
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator

import grain
import numpy as np

Columns = dict[str, np.ndarray]  # arrays [N, ...] of integers, one row an example


def batches(
    columns: Columns,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
) -> Iterator[Columns]:
    """Endless batches of int32[b, ...], b = batch_size // process_count.

    Every epoch is shuffled anew (or, shuffle=False, in order).  Process p gets rows
    p*b..(p+1)*b-1 of the global batch, which is the same at a step for any process_count.
    Starts at step start_step, at once.  Raises ValueError for what cannot be met.
    """
    rows = rows_of_process(batch_size, process_index, process_count)
    if start_step < 0 or not 0 <= seed < 2**32:
        raise ValueError(f"{start_step=}, {seed=}, wanted start_step >= 0, 0 <= seed < 2**32")
    ordered = grain.MapDataset.source(_Examples(columns))
    if shuffle:
        # Grain shuffles epoch e by seed + e: hashed, near seeds share no order.
        ordered = ordered.shuffle(seed=zlib.crc32(f"shuffle {seed}".encode()))
    parts = ordered.repeat().batch(rows)
    mine = parts[start_step * process_count + process_index :: process_count]
    mine = mine.map(lambda batch: {name: a.astype(np.int32) for name, a in batch.items()})
    return iter(mine.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))


def example(columns: Columns, size: int) -> Columns:
    """A batch of `size` rows of zeros, to see shapes by: int32[size, ...]."""
    return {name: np.zeros((size, *a.shape[1:]), np.int32) for name, a in columns.items()}


def evaluation_batches(
    columns: Columns, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Columns]:
    """Goes over the rows once, in order: int32[b, ...], and "weight": float32[b].

    b = batch_size // process_count.  weight is 1 for an example and 0 for the rows (of zeros)
    that fill up the last batch.  Every process gets as many batches.
    """
    rows = rows_of_process(batch_size, process_index, process_count)
    count = len(columns["x"])
    starts = range(process_index * rows, -(-count // batch_size) * batch_size, batch_size)

    def batch(start: int) -> Columns:
        out = {}
        for name, array in columns.items():
            part = array[start : start + rows]
            out[name] = np.zeros((rows, *array.shape[1:]), np.int32)
            out[name][: len(part)] = part
        return out | {"weight": (start + np.arange(rows) < count).astype(np.float32)}

    return map(batch, starts)


def write_folder(folder: pathlib.Path, fill: Callable[[pathlib.Path], None]) -> None:
    """Makes a folder under another name, fills it and then renames it: it is always whole."""
    partial = folder.with_name(f".partial-{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
        fill(partial)
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.exists():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Examples:
    """Rows of columns as a source of Grain's."""

    def __init__(self, columns: Columns):
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns["x"])

    def __getitem__(self, index: int) -> Columns:
        return {name: array[index] for name, array in self._columns.items()}


def rows_of_process(batch_size: int, process_index: int, process_count: int) -> int:
    """Rows of a batch for one process."""
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ValueError(f"{batch_size=} does not divide among {process_count=} processes")
    if not 0 <= process_index < process_count:
        raise ValueError(f"{process_index=}, wanted 0..{process_count - 1}")
    return batch_size // process_count
