"""A worker's rows by Ray Data: tasks beside it read them from Parquet, in the same order each time.

Imported by the readers too, which is why nothing of Ray Train or XGBoost is: 1.2 s and 100 MB for each of them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from mmap import MADV_DONTNEED, PAGESIZE
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, Dataset, Datasource, ExecutionResources, read_datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from toolkit.core.data import Floats
from toolkit.core.errors import DataError
from toolkit.engines.parquet_shards import BLOCK_BYTES, Chunk, Columns, read

# What a worker's readers may hold in the object store before they wait for it.
OBJECT_STORE_BYTES = 4 * BLOCK_BYTES
# Of one reader's task: long enough not to count beside Ray's own cost for it, 10 ms.
_TASK_BYTES = 8 * BLOCK_BYTES
_ROWS = "rows"


class RowsDoNotFit(Exception):
    """`line` says why, in a form that survives the advice which Ray Data adds to an exception's text."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.line = line


def stream(chunks: Sequence[Chunk], columns: Columns, num_readers: int) -> Iterator[Floats]:
    """Matrices of the chunks' rows (`parquet_shards`), in their order, read on this node; each is gone when the next is asked for.

    Raises:
        RowsDoNotFit: what is a DataError of `parquet_shards.read`.
    """
    block: Any
    for block in _dataset(chunks, columns, num_readers).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        for piece in block.column(_ROWS).chunks:
            values = piece.flatten().to_numpy()
            yield values.reshape(len(piece), len(columns.names))
            _let_go(values)


def _let_go(values: Floats) -> None:
    """Ray frees a block about a second after its last use, and reads into other memory meanwhile; what a process has once looked at counts
    as its own until it ends, unless it says that it is done. The object store's pages, which are shared, keep what they hold."""
    first = -(-values.ctypes.data // PAGESIZE) * PAGESIZE
    last = (values.ctypes.data + values.nbytes) // PAGESIZE * PAGESIZE
    if first < last:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_DONTNEED)


def _dataset(chunks: Sequence[Chunk], columns: Columns, num_readers: int) -> Dataset:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=OBJECT_STORE_BYTES)
    rows = _Rows(chunks, columns)
    dataset: Dataset = read_datasource(
        rows,
        # The workers hold all CPUs: a reader that asked for one would wait for ever. It works while its worker waits for it.
        num_cpus=0,
        concurrency=num_readers,
        override_num_blocks=len(rows.groups),
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    )
    return dataset


class _Rows(Datasource):
    """Ray Data's own reader of Parquet divides by files, and `streaming_split` by what comes first; this one by rows."""

    def __init__(self, chunks: Sequence[Chunk], columns: Columns) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._columns = columns
        self.groups: list[list[Chunk]] = []
        room = 0
        for chunk in chunks:
            if chunk.num_rows > room:
                self.groups.append([])
                room = columns.rows_per_block * (_TASK_BYTES // BLOCK_BYTES)
            self.groups[-1].append(chunk)
            room -= chunk.num_rows

    def estimate_inmemory_data_size(self) -> int:
        return sum(map(self._num_bytes, self.groups))

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        # Once, for categories may be many.
        columns = ray.put(self._columns)
        return [
            ReadTask(
                _reader(group, columns),
                BlockMetadata(num_rows=sum(chunk.num_rows for chunk in group), size_bytes=self._num_bytes(group), exec_stats=None),
            )
            for group in self.groups
        ]

    def _num_bytes(self, group: Sequence[Chunk]) -> int:
        return self._columns.num_bytes(sum(chunk.num_rows for chunk in group))


def _reader(chunks: Sequence[Chunk], columns: ray.ObjectRef[Columns]) -> Callable[[], Iterator[pa.Table]]:
    def blocks() -> Iterator[pa.Table]:
        try:
            for matrix in read(chunks, ray.get(columns)):
                yield pa.table({_ROWS: pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])})
        except DataError as error:
            raise RowsDoNotFit(str(error)) from error

    return blocks


def look(probe: str, node_id: str, files: Sequence[str]) -> str | None:
    """On a node: what it lacks of `files`, of the folder `probe` with the driver's mark, and of leave to put its own beside it."""
    unseen = [path for path in (f"{probe}/driver", *files) if not os.path.exists(path)]
    if unseen:
        return f"no {unseen[0]} there"
    try:
        Path(probe, node_id).touch()
    except OSError as error:
        return f"{error.strerror or error}: {probe}"
    return None
