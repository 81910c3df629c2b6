"""Float64 forward pass of a whole sequence, over the exact dequantized weights of a GGUF file.

One plain function per step, no cache, no batching: what the engine must compute, in the fewest words. `plan` resolves everything
that metadata decides; tests of the tests change one field of a plan to see that a golden value notices.
"""
import math
from types import SimpleNamespace
import numpy as np


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def relu2(x):
    return np.maximum(x, 0) ** 2


HALVES = {"phi3", "bitnet", "bitnet-b1.58", "bitnet-25", "qwen2", "qwen3", "gemma3"}
ARCHITECTURES = HALVES | {"llama"}


def plan(file, n_ctx):
    """Everything the metadata decides, per layer where layers may differ. `n_ctx`: context size the session is opened with."""
    arch = file.meta["general.architecture"]
    assert arch in ARCHITECTURES, arch

    def key(name, default=None):
        v = file.meta.get(f"{arch}.{name}", default)
        assert v is not None, f"{arch}.{name} is missing"
        return v

    n = key("block_count")
    each = lambda v: list(v) if isinstance(v, list) else [v] * n
    embd, heads = key("embedding_length"), each(key("attention.head_count"))
    head_dim = key("attention.key_length", embd // heads[0])
    p = SimpleNamespace(arch=arch, layers=n, embd=embd, heads=heads, kv_heads=each(key("attention.head_count_kv", heads)),
                        head_dim=head_dim, eps=key("attention.layer_norm_rms_epsilon"), ff=each(key("feed_forward_length")))
    p.pairing = "halves" if arch in HALVES else "interleaved"
    p.rot = key("rope.dimension_count", head_dim)
    p.activation = gelu_tanh if arch == "gemma3" else relu2 if arch in ("bitnet-b1.58", "bitnet-25") else silu
    if arch.startswith("bitnet"):
        named = file.meta.get(f"{arch}.hidden_activation")
        p.activation = {None: p.activation, "relu2": relu2, "silu": silu}[named]
    p.embed_scale = math.sqrt(embd) if arch == "gemma3" else 1.0
    # Gemma 3 27B (62 layers) scales queries by the width per head and not by the head's own size.
    p.query_scale = (embd / heads[0] if arch == "gemma3" and n == 62 else head_dim) ** -0.5
    p.softcap = file.meta.get(f"{arch}.final_logit_softcapping", 0.0)

    # Sliding window: only Gemma 3. Phi-3 files carry the key too, and it is ignored as llama.cpp does.
    window = file.meta.get(f"{arch}.attention.sliding_window", 0) if arch == "gemma3" else 0
    period = file.meta.get(f"{arch}.attention.sliding_window_pattern", 6)
    local = [bool(window) and i % period < period - 1 for i in range(n)]
    p.window = [window if l else 0 for l in local]

    # Rotary frequencies of each pair, and what multiplies the rotated vectors.
    base, kind = key("rope.freq_base", 10000.0), file.meta.get(f"{arch}.rope.scaling.type", "linear")
    factor = 1.0 if kind == "none" else file.meta.get(f"{arch}.rope.scaling.factor", 0.0) or 1.0
    original = file.meta.get(f"{arch}.rope.scaling.original_context_length", key("context_length"))
    p.magnitude = file.meta.get(f"{arch}.rope.scaling.attn_factor", 1.0)
    pair = np.arange(p.rot // 2)
    wide = base ** (-2.0 * pair / p.rot)
    p.factors = None
    for name in ("rope_freqs", "rope_factors_long" if n_ctx > original else "rope_factors_short"):
        if p.factors is None and f"{name}.weight" in file.tensors:
            p.factors = file.tensors[f"{name}.weight"].values()
    if p.factors is not None:
        wide = wide / p.factors
    if kind == "yarn":
        # Pairs that turn more than 32 times within the original context stay, those that turn less than once are stretched.
        turns = lambda t: p.rot * math.log(original / (t * 2 * math.pi)) / (2 * math.log(base))
        low, high = max(0, math.floor(turns(32.0))), min(p.rot - 1, math.ceil(turns(1.0)))
        stretched = np.clip((pair - low) / max(0.001, high - low), 0, 1)
        freqs = wide / factor * stretched + wide * (1 - stretched)
        p.magnitude *= 1 + 0.1 * math.log(factor) if factor > 1 else 1.0
    else:
        freqs = wide / factor
    local_freqs = file.meta.get(f"{arch}.rope.freq_base_swa", 10000.0) ** (-2.0 * pair / p.rot)
    p.freqs = [local_freqs if l else freqs for l in local]
    return p


def rms(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rope(x, freqs, pairing, rot, magnitude):
    """x [tokens, heads, head_dim]: the first `rot` dimensions turn, the others pass."""
    angle = np.arange(len(x))[:, None, None] * freqs
    c, s = np.cos(angle) * magnitude, np.sin(angle) * magnitude
    y = x.copy()
    a, b = (slice(0, rot, 2), slice(1, rot, 2)) if pairing == "interleaved" else (slice(0, rot // 2), slice(rot // 2, rot))
    y[..., a], y[..., b] = x[..., a] * c - x[..., b] * s, x[..., a] * s + x[..., b] * c
    return y


def attention(q, k, v, scale, window):
    """q [tokens, heads, d], k and v [tokens, kv_heads, d]; head h reads kv head h // (heads / kv_heads)."""
    t, h, _ = q.shape
    share = h // k.shape[1]
    k, v = np.repeat(k, share, 1), np.repeat(v, share, 1)
    score = np.einsum("ihd,jhd->hij", q, k) * scale
    back = np.arange(t)[:, None] - np.arange(t)[None, :]
    hidden = (back < 0) | (back >= window if window else False)
    score = np.where(hidden, -np.inf, score)
    w = np.exp(score - score.max(-1, keepdims=True))
    return np.einsum("hij,jhd->ihd", w / w.sum(-1, keepdims=True), v).reshape(t, -1)


def int8(x, group):
    """Activations rounded to int8 with one scale per `group` values: the error a quantizing engine is allowed."""
    g = x.reshape(len(x), -1, group) if group else x[:, None, :]
    s = np.abs(g).max(-1, keepdims=True) / 127 + 1e-30
    return (np.rint(g / s) * s).reshape(x.shape)


FLOATS = ("F32", "F16", "BF16")


def logits(file, ids, n_ctx, p=None, acts=None):
    """[tokens, vocab]. `acts`: None for exact activations, else a function applied to the input of every quantized matrix."""
    p = p or plan(file, n_ctx)
    T = file.tensors
    cache = file.__dict__.setdefault("_values", {})

    def w(name):
        if name not in cache:
            cache[name] = T[name].values()
        return cache[name]

    def linear(x, name):
        if acts and T[name + ".weight"].fmt not in FLOATS:
            x = acts(x)
        y = x @ w(name + ".weight").T
        if name + ".scale" in T:
            y = y * w(name + ".scale")
        return y + w(name + ".bias") if name + ".bias" in T else y

    def norm(x, name):
        return rms(x, w(name + ".weight"), p.eps)

    def maybe_norm(x, name):
        return norm(x, name) if name + ".weight" in T else x

    x = w("token_embd.weight")[np.array(ids)] * p.embed_scale
    for i in range(p.layers):
        b = f"blk.{i}."
        h, kv, d = p.heads[i], p.kv_heads[i], p.head_dim
        y = norm(x, b + "attn_norm")
        if b + "attn_qkv.weight" in T:
            q, k, v = np.split(linear(y, b + "attn_qkv"), [h * d, (h + kv) * d], axis=1)
        else:
            q, k, v = (linear(y, b + "attn_" + c) for c in "qkv")
        q, k, v = q.reshape(-1, h, d), k.reshape(-1, kv, d), v.reshape(-1, kv, d)
        q, k = maybe_norm(q, b + "attn_q_norm"), maybe_norm(k, b + "attn_k_norm")
        q, k = (rope(z, p.freqs[i], p.pairing, p.rot, p.magnitude) for z in (q, k))
        y = attention(q, k, v, p.query_scale, p.window[i])
        y = linear(maybe_norm(y, b + "attn_sub_norm"), b + "attn_output")
        x = x + maybe_norm(y, b + "post_attention_norm")

        y = norm(x, b + "ffn_norm")
        if b + "ffn_gate.weight" in T:
            gate, up = linear(y, b + "ffn_gate"), linear(y, b + "ffn_up")
        else:
            gate, up = np.split(linear(y, b + "ffn_up"), 2, axis=1)
        y = maybe_norm(p.activation(gate) * up, b + "ffn_sub_norm")
        x = x + maybe_norm(linear(y, b + "ffn_down"), b + "post_ffw_norm")
    out = linear(norm(x, "output_norm"), "output" if "output.weight" in T else "token_embd")
    return np.tanh(out / p.softcap) * p.softcap if p.softcap else out


def golden(file, ids, n_ctx, p=None, acts=None):
    """Values of a teacher-forced pass: dict with next_logprob, top1, top1_gap and the last row of logits."""
    z = logits(file, ids, n_ctx, p, acts)
    top = np.sort(z, axis=1)[:, -2:]
    m = z.max(1)
    norm = m + np.log(np.exp(z - m[:, None]).sum(1))
    return {"next_logprob": [float(z[i, ids[i + 1]] - norm[i]) for i in range(len(ids) - 1)],
            "top1": [int(t) for t in z.argmax(1)], "top1_gap": [float(g) for g in top[:, 1] - top[:, 0]], "last_logits": z[-1]}
