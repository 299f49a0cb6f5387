"""Reads tars from end to end with the bytes of all members: headers and data come of blocks that are read once."""

from collections.abc import Iterator

from data_pipelines.sources.tar_headers import BLOCK, READ_AHEAD, Break
from data_pipelines.sources.tar_index import TarIndex
from data_pipelines.sources.tar_samples import TarSample, samples
from data_pipelines.storage import ReadAt, Storage

_BLOCK_BYTES = 1 << 18
"""Fits into the cache of a core, and holds several samples of most data sets."""
_SAMPLE_LIMIT = 1 << 30
"""Bytes of a sample, headers and padding included, beyond which it is refused."""

Contents = tuple[TarSample, dict[str, memoryview]]


def contents(
    path: str, storage: Storage, index: TarIndex | None = None, block_bytes: int = _BLOCK_BYTES
) -> Iterator[Contents | Break]:
    """Yields every sample of a tar with the bytes of its members by extension; a `Break` is always the last.

    The bytes may be kept; they keep the block alive that they are part of. A refused sample has none.

    Args:
        path: of the tar.
        storage: that reads it.
        index: of the tar; None: its headers are walked.
        block_bytes: that are read at once; a larger sample is a block of its own.

    Raises:
        OSError: the tar cannot be read, or is shorter than it was when it was opened or indexed.
    """
    file_size = storage.size(path)
    blocks = _Blocks(storage.reader(path), block_bytes)
    found = samples(blocks.read, file_size, 0, blocks.ahead) if index is None else index.samples()
    for sample in found:
        if isinstance(sample, Break):
            yield sample
            return
        if sample.refusal is None and (sample.place < blocks.start or sample.following > blocks.end):
            _load(blocks, sample, file_size, path)
        if sample.refusal is not None:
            yield sample, {}
            continue
        start, view = blocks.start, blocks.view
        yield sample, {name: view[at - start : at - start + size] for name, (at, size) in sample.members.items()}


def _load(blocks: "_Blocks", sample: TarSample, file_size: int, path: str) -> None:
    """Brings a sample into a block, or refuses it."""
    # The padding behind the last member may be cut off.
    end = min(sample.following, file_size)
    if end - sample.place > _SAMPLE_LIMIT:
        sample.refusal = "sample_too_large", f"{end - sample.place} bytes"
    elif sample.place < blocks.start or end > blocks.end:
        blocks.load(sample.place, end - sample.place)
        if end > blocks.end:
            raise OSError(f"{path} ends at byte {blocks.end} where it reached to {end} before: it was cut")


class _Blocks:
    """The block of a tar that is being looked at."""

    __slots__ = ("_block_bytes", "end", "read", "start", "view")

    def __init__(self, read: ReadAt, block_bytes: int) -> None:
        self.read = read
        self._block_bytes = block_bytes
        self.start = self.end = 0
        self.view = memoryview(b"")

    def load(self, start: int, length: int) -> bytes:
        data = self.read(start, max(length, self._block_bytes))
        self.start, self.end, self.view = start, start + len(data), memoryview(data)
        return data

    def ahead(self, offset: int, place: int) -> tuple[bytes, int]:
        """Bytes from a sample's place to the header behind it; of one that is refused, the header's alone."""
        length = offset + BLOCK - place
        if length > _SAMPLE_LIMIT + BLOCK:
            return self.read(offset, READ_AHEAD), offset
        return self.load(place, length), place
