"""Write the block-format fixtures: per case raw tensor bytes and the float32 values they mean, and an index.

Usage: python3 make_formats.py OUTPUT_FOLDER
"""
import json, pathlib, sys
import numpy as np
import blocks

CASES = [(name, name, 4, 512) for name in blocks.FORMATS] + [("I2_S_640", "I2_S", 3, 640)]


def main(out):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    index = []
    for case, name, rows, cols in CASES:
        rng = np.random.default_rng([ord(c) for c in case])
        raw = blocks.random_tensor(name, rows, cols, rng)
        values = blocks.dequantize(name, raw, (rows, cols))
        assert np.isfinite(values).all() and np.abs(values).max() > 0, case
        (out / f"{case}.bin").write_bytes(raw)
        (out / f"{case}.f32").write_bytes(values.astype("<f4").tobytes())
        index.append({"file": case, "format": name, "ggml_type": blocks.FORMATS[name][0], "rows": rows, "cols": cols,
                      "bytes": len(raw), "by": "own decoder" if name in ("F32", "F16", "I2_S", "Q1_0", "Q2_0", "Q2_0_G128") else "gguf.quants"})
    (out / "index.json").write_text("[\n" + ",\n".join(json.dumps(e) for e in index) + "\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])
