"""A process that reads a remote file through a cache and prints its digest: ADDRESS FOLDER [stuck].

A stuck one never ends the write of its third block.
"""

import hashlib
import sys
import threading
from pathlib import Path

from data_pipelines.storage import Storage, StorageConfig

BLOCK = 4096
write_bytes = Path.write_bytes


def main(address: str, folder: str, stuck: bool) -> None:
    written = []

    def write_half(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) < 3:
            return write_bytes(path, data)
        write_bytes(path, data[: len(data) // 2])
        print("stuck", flush=True)
        threading.Event().wait()
        return 0

    if stuck:
        Path.write_bytes = write_half  # type: ignore[method-assign]
    storage = Storage(StorageConfig(cache=folder, cache_bytes=2**20, block_bytes=BLOCK, read_ahead=0))
    digest = hashlib.sha256()
    for offset in range(0, storage.size(address), 1000):
        digest.update(storage.read(address, offset, 1000))
    storage.close()
    print("read", digest.hexdigest(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3], stuck=len(sys.argv) > 3)
