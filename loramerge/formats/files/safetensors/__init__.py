"""The safetensors container, read and written without mapping files into memory.

    open_file(path) -> File      header only, everything in it checked
    open_elsewhere(fetch)        the same of a file that is not here
    File, TensorRef              what a file holds; `TensorRef.read()` fetches one tensor
    file_size(layout, metadata)  the bytes of a file before it is written
    Writer(path, layout)         writes tensors in any order, to the same bytes

Mapped pages count as memory, and a mapped file that shrinks kills the process; so files are read
with `pread`, into arrays of our own.
"""

from loramerge.formats.files.safetensors.read import File, Stored, TensorRef, open_elsewhere, open_file
from loramerge.formats.files.safetensors.write import Writer, file_size

__all__ = ["File", "Stored", "TensorRef", "Writer", "file_size", "open_elsewhere", "open_file"]
