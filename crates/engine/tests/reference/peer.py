"""llama.cpp as an outside witness, through the C API that the PyPI wheel `xllamacpp` exports.

    python3 -m venv --system-site-packages v && v/bin/pip install --no-deps xllamacpp==2026.10.11549

Parameter structs are taken as opaque bytes and a few fields set at the offsets of that version: another version needs them checked.
"""
import ctypes as C, importlib.util, pathlib, struct
import numpy as np

VERSION = "2026.10.11549"
NAME = f"llama.cpp in xllamacpp {VERSION} (PyPI)"
_folder = pathlib.Path(importlib.util.find_spec("xllamacpp").origin).parent
assert f'"{VERSION}"' in (_folder / "_version.py").read_text().replace("'", '"'), "peer.py was written for xllamacpp " + VERSION
_lib = C.CDLL(str(next(_folder.glob("*.so"))))


class Params(C.Structure):
    """Larger than any parameter struct; the callee reads its own size."""
    _fields_ = [("bytes", C.c_uint8 * 512)]


class Batch(C.Structure):
    _fields_ = [("n", C.c_int32), ("token", C.POINTER(C.c_int32)), ("embd", C.c_void_p), ("pos", C.POINTER(C.c_int32)),
                ("n_seq", C.POINTER(C.c_int32)), ("seq", C.POINTER(C.POINTER(C.c_int32))), ("logits", C.POINTER(C.c_int8))]


def _c(name, result, *args):
    f = getattr(_lib, "llama_" + name)
    f.restype, f.argtypes = result, args
    return f


P, I, IP = C.c_void_p, C.c_int32, C.POINTER(C.c_int32)
_model_params, _context_params = _c("model_default_params", Params), _c("context_default_params", Params)
_load, _init, _vocab = _c("model_load_from_file", P, C.c_char_p, Params), _c("init_from_model", P, P, Params), _c("model_get_vocab", P, P)
_size, _batch, _batch_free = _c("vocab_n_tokens", I, P), _c("batch_init", Batch, I, I, I), _c("batch_free", None, Batch)
_decode, _logits = _c("decode", I, P, Batch), _c("get_logits_ith", C.POINTER(C.c_float), P, I)
_tokenize = _c("tokenize", I, P, C.c_char_p, I, IP, I, C.c_bool, C.c_bool)
_detokenize = _c("detokenize", I, P, IP, I, C.c_char_p, I, C.c_bool, C.c_bool)
_memory, _clear = _c("get_memory", P, P), _c("memory_clear", None, P, C.c_bool)
_log_type = C.CFUNCTYPE(None, C.c_int, C.c_char_p, P)
_log = []
_log_function = _log_type(lambda level, text, _: _log.append(text.decode("utf-8", "replace")))
_c("log_set", None, _log_type, P)(_log_function, None)


class Model:
    """A model with an f32 cache and plain attention on one thread; `vocab_only` loads the tokenizer alone."""

    def __init__(self, path, n_ctx=512, vocab_only=False):
        p = _model_params()
        p.bytes[72], p.bytes[74] = vocab_only, False                      # vocab_only, use_extra_bufts (repacked weights)
        self.model = _load(str(path).encode(), p)
        if not self.model:
            raise RuntimeError("".join(_log[-8:]))
        self.vocab = _vocab(self.model)
        if vocab_only:
            return
        p = _context_params()
        b = bytearray(p.bytes)
        for at, v in ((0, n_ctx), (4, max(512, n_ctx)), (28, 1), (32, 1), (52, 0), (104, 0), (108, 0)):   # n_batch, threads, flash, K and V type F32
            struct.pack_into("<I", b, at, v)
        p.bytes[:] = b
        self.context = _init(self.model, p)
        if not self.context:
            raise RuntimeError("".join(_log[-8:]))

    def tokenize(self, text, add_special=True, parse_special=False):
        t = text.encode("utf-8")
        buf = (I * (len(t) + 16))()
        n = _tokenize(self.vocab, t, len(t), buf, len(buf), add_special, parse_special)
        assert n >= 0, n
        return list(buf[:n])

    def detokenize(self, ids):
        """Bytes of the text, control tokens left out."""
        out = C.create_string_buffer(64 * len(ids) + 64)
        n = _detokenize(self.vocab, (I * max(1, len(ids)))(*ids), len(ids), out, len(out), False, False)
        assert n >= 0, n
        return out.raw[:n]

    def feed(self, ids, start=0):
        """Logits [tokens, vocab] of `ids` at positions start.. ; start 0 empties the cache."""
        if start == 0:
            _clear(_memory(self.context), True)
        b = _batch(len(ids), 0, 1)
        b.n = len(ids)
        for i, t in enumerate(ids):
            b.token[i], b.pos[i], b.n_seq[i], b.logits[i] = t, start + i, 1, 1
            b.seq[i][0] = 0
        status = _decode(self.context, b)
        assert status == 0, status
        n = _size(self.vocab)
        rows = np.stack([np.ctypeslib.as_array(_logits(self.context, i), (n,)).copy() for i in range(len(ids))])
        _batch_free(b)
        return rows

    def greedy(self, ids, n):
        """n greedy tokens and the logit gap between the best two at each step."""
        out, gaps, row = [], [], self.feed(ids)[-1]
        for _ in range(n):
            a, b = np.partition(row, -2)[-2:][::-1]
            out.append(int(row.argmax())), gaps.append(round(float(a - b), 3))
            row = self.feed([out[-1]], len(ids) + len(out) - 1)[-1]
        return out, gaps
