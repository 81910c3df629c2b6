"""A small GGUF reader and writer with all the tensor types of blocks.py.

Written beside the `gguf` package because that knows neither I2_S nor the two meanings of type 42. Trusts its input: for tests only.
"""
import struct
import numpy as np
import blocks

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9


class Tensor:
    """Raw bytes of a tensor; `shape` is (rows, columns) or (n,), outermost first."""

    def __init__(self, fmt, shape, raw):
        self.fmt, self.shape, self.raw = fmt, tuple(shape), bytes(raw)
        assert len(self.raw) == blocks.nbytes(fmt, int(np.prod(self.shape))), (fmt, shape, len(self.raw))

    def values(self):
        """The exact weights as float64."""
        return blocks.dequantize(self.fmt, self.raw, self.shape).astype(np.float64)


class File:
    """`meta`: key -> value; `tensors`: name -> Tensor, in file order."""

    def __init__(self, meta, tensors):
        self.meta, self.tensors = meta, tensors


def read(path):
    data = open(path, "rb").read()
    at = 0

    def scalar(fmt):
        nonlocal at
        v = struct.unpack_from(fmt, data, at)[0]
        at += struct.calcsize(fmt)
        return v

    def string():
        nonlocal at
        n = scalar("<Q")
        at += n
        return data[at - n:at].decode("utf-8")

    def value(kind):
        if kind == STRING:
            return string()
        if kind == ARRAY:
            inner, n = scalar("<I"), scalar("<Q")
            return [value(inner) for _ in range(n)]
        return scalar(SCALARS[kind])

    assert data[:4] == b"GGUF"
    at = 4
    assert scalar("<I") in (2, 3)
    n_tensors, n_meta = scalar("<Q"), scalar("<Q")
    meta = {}
    for _ in range(n_meta):
        key = string()
        meta[key] = value(scalar("<I"))
    infos = []
    for _ in range(n_tensors):
        name = string()
        dims = [scalar("<Q") for _ in range(scalar("<I"))]
        infos.append((name, dims[::-1], scalar("<I"), scalar("<Q")))
    align = meta.get("general.alignment", 32)
    base = -(-at // align) * align
    ends = sorted(i[3] for i in infos) + [len(data) - base]
    tensors = {}
    for name, shape, kind, offset in infos:
        fmt, n = blocks.NAME_OF_ID[kind], int(np.prod(shape))
        room = next(e for e in ends if e > offset) - offset
        if kind == 42 and blocks.nbytes("Q2_0", n) > room:            # the legacy layout is shorter than the official one
            fmt = "Q2_0_G128"
        size = blocks.nbytes(fmt, n)
        assert size <= room, (name, size, room)
        tensors[name] = Tensor(fmt, shape, data[base + offset:base + offset + size])
    return File(meta, tensors)


def write(path, file, align=32):
    """Python ints become u32, floats f32, bools bool, strings string; a list takes the type of its first element (ints: i32)."""
    out = bytearray()

    def string(s):
        b = s.encode("utf-8")
        out.extend(struct.pack("<Q", len(b)) + b)

    def value(v, in_array=False):
        if isinstance(v, bool):
            return 7, struct.pack("<?", v)
        if isinstance(v, int):
            return (5, struct.pack("<i", v)) if in_array else (4, struct.pack("<I", v))
        if isinstance(v, float):
            return 6, struct.pack("<f", v)
        if isinstance(v, str):
            b = v.encode("utf-8")
            return STRING, struct.pack("<Q", len(b)) + b
        items = [value(x, True) for x in v]
        return ARRAY, struct.pack("<IQ", items[0][0], len(items)) + b"".join(b for _, b in items)

    out += b"GGUF" + struct.pack("<IQQ", 3, len(file.tensors), len(file.meta))
    for key, v in file.meta.items():
        string(key)
        kind, body = value(v)
        out += struct.pack("<I", kind) + body
    offset = 0
    for name, t in file.tensors.items():
        string(name)
        out += struct.pack("<I", len(t.shape)) + b"".join(struct.pack("<Q", d) for d in t.shape[::-1])
        out += struct.pack("<IQ", blocks.FORMATS[t.fmt][0], offset)
        offset += -(-len(t.raw) // align) * align
    out += bytes(-len(out) % align)
    for t in file.tensors.values():
        out += t.raw + bytes(-len(t.raw) % align)
    open(path, "wb").write(out)
