"""Quantization blocks in numpy: sizes, dequantizing, quantizing and random valid blocks.

The ordinary formats and TQ1_0/TQ2_0 are dequantized by the `gguf` package, an outside implementation. I2_S, Q1_0, Q2_0 and the
legacy group-128 Q2_0 are decoded here, from the layouts alone. The quantizers serve to make test models and aim at no quality.
Not here: speed. Nothing in this folder is used by the program.
"""
import numpy as np
import gguf
from gguf import GGMLQuantizationType as T, quants

# name -> (GGUF type id, weights a block, bytes a block). I2_S is a whole-tensor format: n/4 bytes and a tail of 32.
FORMATS = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2),
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34),
    "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210),
    "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66), "I2_S": (36, 1, 0),
    "Q1_0": (41, 128, 18), "Q2_0": (42, 64, 18), "Q2_0_G128": (42, 128, 34),
}
NAME_OF_ID = {v[0]: k for k, v in FORMATS.items() if k != "Q2_0_G128"}


def nbytes(name, n):
    if name == "I2_S":
        return n // 4 + 32
    _, block, size = FORMATS[name]
    assert n % block == 0, (name, n)
    return n // block * size


def f16(raw, at):
    """The half at byte `at` of each block, as a float32 column."""
    return raw[:, at:at + 2].copy().view("<f2").astype(np.float32)


def dequantize(name, raw, shape):
    """Bytes of a tensor to float32 of `shape` = (rows, columns) or (n,)."""
    raw = np.frombuffer(raw, np.uint8)
    n = int(np.prod(shape))
    assert raw.size == nbytes(name, n), (name, raw.size, nbytes(name, n))
    if name == "F32":
        return raw.view("<f4").reshape(shape).copy()
    if name == "F16":
        return raw.view("<f2").astype(np.float32).reshape(shape)
    if name == "I2_S":
        b = raw[:n // 4].reshape(-1, 1, 32)
        codes = b >> np.array([6, 4, 2, 0], np.uint8).reshape(1, 4, 1) & 3     # quarter r/32 of a block of 128: high bits first
        scale = raw[n // 4:n // 4 + 4].view("<f4")[0]
        return ((codes.astype(np.float32) - 1) * scale).reshape(shape)
    if name == "Q1_0":
        b = raw.reshape(-1, 18)
        bits = np.unpackbits(b[:, 2:], axis=1, bitorder="little").astype(np.float32)
        return ((bits * 2 - 1) * f16(b, 0)).reshape(shape)
    if name in ("Q2_0", "Q2_0_G128"):
        b = raw.reshape(-1, FORMATS[name][2])
        codes = b[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3          # four neighbours in a byte, low bits first
        return ((codes.reshape(len(b), -1).astype(np.float32) - 1) * f16(b, 0)).reshape(shape)
    return quants.dequantize(raw.reshape(shape[0] if len(shape) > 1 else 1, -1), T[name]).reshape(shape).astype(np.float32)


# ---- quantizing ----------------------------------------------------------------------------------------------------------

def half(x):
    return np.asarray(x, np.float32).astype("<f2")


def ternary_codes(w):
    """Codes 0, 1, 2 and the scale of the absmean rule, over the whole tensor."""
    scale = np.float32(np.abs(w).mean() + 1e-9)
    return (np.clip(np.rint(w / scale), -1, 1) + 1).astype(np.uint8), scale


def pack_i2_s(codes, scale, garbage):
    c = codes.reshape(-1, 4, 32)
    body = c[:, 0] << 6 | c[:, 1] << 4 | c[:, 2] << 2 | c[:, 3]
    return body.tobytes() + np.float32(scale).tobytes() + bytes(garbage)


def six_bit_scales(sc, m):
    """The 12 packed bytes of eight 6-bit scales and eight 6-bit minima (Q4_K, Q5_K)."""
    out = np.zeros((len(sc), 12), np.uint8)
    out[:, 0:4] = sc[:, :4] | sc[:, 4:] >> 4 << 6
    out[:, 4:8] = m[:, :4] | m[:, 4:] >> 4 << 6
    out[:, 8:12] = sc[:, 4:] & 15 | (m[:, 4:] & 15) << 4
    return out


def quantize_k(w, top):
    """Q4_K (top 15) and Q5_K (top 31): per 32 weights a scale and a minimum, both of 6 bits."""
    w = w.reshape(-1, 8, 32).astype(np.float64)
    low = np.minimum(w.min(2), 0)
    step = (w.max(2) - low) / top
    d, dmin = step.max(1, keepdims=True) / 63 + 1e-12, (-low).max(1, keepdims=True) / 63 + 1e-12
    d16, dmin16 = half(d), half(dmin)
    sc, m = (np.clip(np.rint(v / s), 0, 63).astype(np.uint8) for v, s in ((step, d), (-low, dmin)))
    a = np.maximum(d16.astype(np.float64) * sc, 1e-9)[:, :, None]
    q = np.clip(np.rint((w + (dmin16.astype(np.float64) * m)[:, :, None]) / a), 0, top).astype(np.uint8)
    lo, hi = q[:, 0::2], q[:, 1::2]                                             # a chunk of 64 shares 32 bytes
    head = [d16.view(np.uint8), dmin16.view(np.uint8), six_bit_scales(sc, m)]
    qs = (lo & 15 | (hi & 15) << 4).reshape(len(w), 128)
    if top == 31:
        shift = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
        head.append(np.bitwise_or.reduce((q >> 4) << shift, axis=1))
    return np.concatenate(head + [qs], axis=1).tobytes()


def quantize_q6_k(w):
    w = w.reshape(-1, 16, 16).astype(np.float64)
    step = np.abs(w).max(2) / 31
    d = half(step.max(1, keepdims=True) / 127 + 1e-12)
    sc = np.clip(np.rint(step / d.astype(np.float64)), 1, 127).astype(np.int8)
    q = (np.clip(np.rint(w / (d.astype(np.float64) * sc)[:, :, None]), -32, 31) + 32).astype(np.uint8)
    q = q.reshape(-1, 2, 4, 32)                                                 # half, position in {0,32,64,96}, l
    ql = np.stack([q[:, :, 0] & 15 | (q[:, :, 2] & 15) << 4, q[:, :, 1] & 15 | (q[:, :, 3] & 15) << 4], 2).reshape(-1, 128)
    qh = (q[:, :, 0] >> 4 | q[:, :, 1] >> 4 << 2 | q[:, :, 2] >> 4 << 4 | q[:, :, 3] >> 4 << 6).reshape(-1, 64)
    return np.concatenate([ql, qh, sc.view(np.uint8), d.view(np.uint8)], axis=1).tobytes()


def quantize(name, w, rng):
    """float32 to the bytes of a tensor. Ternary formats take the absmean rule over the whole tensor."""
    w = np.ascontiguousarray(w, np.float32)
    if name == "F32":
        return w.astype("<f4").tobytes()
    if name == "F16":
        return half(w).tobytes()
    if name == "I2_S":
        return pack_i2_s(*ternary_codes(w), garbage=rng.integers(0, 256, 28, dtype=np.uint8))
    if name in ("TQ1_0", "TQ2_0"):
        codes, scale = ternary_codes(w)
        return quants.quantize((codes.astype(np.float32) - 1) * np.float32(half(scale)), T[name]).tobytes()
    if name == "Q1_0":
        b = w.reshape(-1, 128)
        return np.concatenate([half(np.abs(b).mean(1, keepdims=True)).view(np.uint8),
                               np.packbits(b > 0, axis=1, bitorder="little")], axis=1).tobytes()
    if name in ("Q2_0", "Q2_0_G128"):
        group = FORMATS[name][1]
        b = w.reshape(-1, group)
        d = half(np.abs(b).max(1, keepdims=True) / 1.6)
        c = np.clip(np.rint(b / d.astype(np.float32)) + 1, 0, 3).astype(np.uint8).reshape(len(b), -1, 4)
        return np.concatenate([d.view(np.uint8), c[..., 0] | c[..., 1] << 2 | c[..., 2] << 4 | c[..., 3] << 6], axis=1).tobytes()
    if name in ("Q4_K", "Q5_K"):
        return quantize_k(w, 15 if name == "Q4_K" else 31)
    if name == "Q6_K":
        return quantize_q6_k(w)
    return quants.quantize(w, T[name]).tobytes()


# ---- random valid blocks -------------------------------------------------------------------------------------------------

def random_scales(rng, n, signed=True):
    """Halves of moderate size, of both signs; the first three blocks get zero, a subnormal and a large value."""
    d = half(rng.uniform(0.002, 0.1, n) * (rng.choice([-1, 1], n) if signed else 1))
    d[:3] = np.array([0.0, 6e-8, 0.5], "<f2")[:min(n, 3)]
    return d.reshape(-1, 1).view(np.uint8)


def trit_bytes(rng, blocks, count, digits):
    """Bytes that hold `digits` base-3 digits as the TQ1_0 encoder writes them: every other byte is invalid."""
    v = rng.integers(0, 3 ** digits, (blocks, count)) * 3 ** (5 - digits)
    return ((v * 256 + 242) // 243).astype(np.uint8)


def random_tensor(name, rows, cols, rng):
    """Bytes of a tensor of random valid blocks: every bit pattern the format allows, scales finite and moderate."""
    n = rows * cols
    if name == "F32":
        w = rng.normal(0, 1, n).astype("<f4")
        w[:4] = [0.0, -0.0, 1e-40, -100.0]
        return w.tobytes()
    if name == "F16":
        w = rng.normal(0, 1, n).astype("<f2")
        w[:4] = [0.0, 6e-8, -65504.0, 6.1e-5]
        return w.tobytes()
    if name == "BF16":
        return (rng.normal(0, 1, n).astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    if name == "I2_S":
        return pack_i2_s(rng.integers(0, 3, n).astype(np.uint8), 0.0371, rng.integers(0, 256, 28, dtype=np.uint8))
    _, block, size = FORMATS[name]
    b = n // block
    raw = rng.integers(0, 256, (b, size), dtype=np.uint8)
    d = random_scales(rng, b)
    if name in ("Q4_1", "Q5_1", "Q4_K", "Q5_K"):
        raw[:, 0:2] = d
        raw[:, 2:4] = random_scales(rng, b)[::-1]
    elif name == "Q6_K":
        raw[:, 208:210] = d
    elif name == "TQ1_0":
        raw = np.concatenate([trit_bytes(rng, b, 48, 5), trit_bytes(rng, b, 4, 4), d], axis=1)
    elif name == "TQ2_0":
        c = rng.integers(0, 3, (b, 64, 4)).astype(np.uint8)
        raw = np.concatenate([c[..., 0] | c[..., 1] << 2 | c[..., 2] << 4 | c[..., 3] << 6, d], axis=1)
    else:
        raw[:, 0:2] = d
    return raw.tobytes()
