"""Every dtype goes both ways between us and the safetensors library, bit for bit (by its torch binding)."""

import ml_dtypes
import numpy as np
import pytest

from loramerge.formats.files.safetensors import Writer, open_file

torch = pytest.importorskip("torch", reason="the library reads and writes these dtypes by torch")
library = pytest.importorskip("safetensors.torch")

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}
NUMPY = {
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


def written(path, tensors, metadata=None, order=sorted):
    layout = {key: (dtype, array.shape) for key, (dtype, array) in tensors.items()}
    with Writer(path, layout, metadata or {}) as writer:
        for key in order(tensors):
            writer.write(key, tensors[key][1])
    return path


def samples():
    """Every dtype that is read, in several shapes, with bytes that are not all alike."""
    rng = np.random.default_rng(0)
    for name, dtype in TORCH.items():
        kind = np.dtype(NUMPY.get(name) or str(dtype).removeprefix("torch."))
        for shape in [(), (0,), (3, 0, 2), (5,), (2, 3)]:
            raw = rng.integers(0, 2, (*shape, kind.itemsize), dtype=np.uint8)
            yield f"{name}{list(shape)}", name, raw.view(kind).reshape(shape)


def as_torch(name, array):
    made = torch.empty(array.shape, dtype=TORCH[name])
    made.flatten().view(torch.uint8).numpy()[:] = np.frombuffer(array.tobytes(), np.uint8)
    return made


def bits(array):
    return array.dtype, array.shape, array.tobytes()


def test_every_dtype_that_the_library_writes_is_read_with_the_same_bits(tmp_path):
    content = {key: as_torch(name, array) for key, name, array in samples()}
    path = tmp_path / "library.safetensors"
    library.save_file(content, path, metadata={"format": "pt"})
    file = open_file(path)
    assert file.metadata == {"format": "pt"}
    assert file.tensors.keys() == content.keys()
    for key, name, array in samples():
        ref = file.tensors[key]
        assert (ref.dtype, ref.shape, ref.nbytes) == (name, array.shape, array.nbytes)
        assert bits(ref.read()) == bits(array)


def test_every_dtype_that_we_write_is_read_by_the_library_with_the_same_bits(tmp_path):
    path = written(tmp_path / "ours", {key: (name, array) for key, name, array in samples()})
    content = library.load_file(path)
    for key, name, array in samples():
        assert content[key].dtype == TORCH[name]
        assert content[key].flatten().view(torch.uint8).numpy().tobytes() == array.tobytes()


def test_we_write_the_very_bytes_that_the_library_writes(tmp_path):
    path = written(tmp_path / "ours", {key: (n, a) for key, n, a in samples()}, {"format": "pt"})
    content = {key: as_torch(name, array) for key, name, array in samples()}
    assert path.read_bytes() == library.save(content, {"format": "pt"})
