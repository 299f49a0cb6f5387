"""Tars of any members, whole or broken, for property tests."""

import io
import tarfile

from hypothesis import strategies as st

NAMES = st.builds(
    "{}{}.{}".format,
    st.sampled_from(["", "./", "folder/", "../", "a-long-name/" * 12]),
    st.sampled_from(["a", "b", "cé", "\udcff"]),
    st.sampled_from(["jpg", "TXT", "json", "0.png", "pkl"]),
)
KINDS = st.sampled_from([tarfile.REGTYPE] * 6 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE])
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


@st.composite
def tars(draw):
    """Tars of any members, some of them cut off, damaged or written on behind their end."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=draw(FORMATS), errors="surrogateescape") as tar:
        for name, kind, size in draw(st.lists(st.tuples(NAMES, KINDS, st.integers(0, 700)), max_size=12)):
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, size if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    data = bytearray(buffer.getvalue())
    end = draw(st.integers(0, len(data)) | st.just(len(data)))
    data = data[:end] + draw(st.sampled_from([b"", b"", b"more"]))
    if data and draw(st.booleans()):
        data[draw(st.integers(0, len(data) - 1))] = 0xFF
    return bytes(data)
