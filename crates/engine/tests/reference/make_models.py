"""Write tiny random models with golden values: `NAME.gguf` and `NAME.json` for every case below.

Usage: python3 make_models.py OUTPUT_FOLDER [NAME ...]

Each case lists `wrongs`: changes of the plan or of the file that stand for a mistake an engine could make. A case is written only when
each of them moves the golden values clearly, so a test against it can fail.
"""
import copy, json, math, pathlib, sys
import numpy as np
import blocks, forward, ggufio

VOCAB = 272


def sentencepiece():
    """Three control tokens, 256 bytes, 13 pieces."""
    pieces = ["\u2581", "e", "t", "a", "o", "n", "h", "s", "he", "an", "\u2581t", "\u2581the", "\u2581a"]
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + pieces,
            "tokenizer.ggml.scores": [0.0] * 259 + [-float(i + 1) for i in range(13)],
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 13,
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_space_prefix": True}


def byte_level(pre):
    """256 bytes in the printable alphabet of GPT-2, 13 merges, three control tokens last. `pre` None: the key is left out."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(b) if b in printable else chr(next(others)) for b in range(256)]
    merges = ["h e", "a n", "i n", "o n", "r e", "e r", "\u0120 t", "\u0120 a", "\u0120t he", "n d", "e s", "l l", "in g"]
    merged = [m.replace(" ", "") for m in merges]
    meta = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": letters + merged + ["<|begin|>", "<|end|>", "<|pad|>"],
            "tokenizer.ggml.token_type": [1] * 269 + [3] * 3, "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.bos_token_id": 269, "tokenizer.ggml.eos_token_id": 270, "tokenizer.ggml.padding_token_id": 271,
            "tokenizer.ggml.add_bos_token": True}
    return {k: v for k, v in meta.items() if v is not None}


TOKENIZER = {"qwen2": lambda: byte_level("qwen2"), "qwen3": lambda: byte_level("qwen2"), "bitnet-b1.58": lambda: byte_level(None),
             "bitnet-25": lambda: byte_level("llama-bpe")}


def make(name, arch, notes, embd=32, heads=2, kv=1, head_dim=None, ff=48, layers=2, tokens=36, n_ctx=256, context=256, own_head=False,
         embed="F16", head="F16", body="F32", keys=None, extra=None, wrongs=None, key_length=False):
    """A case as File, ids and description. `body`: one format, or a dict by tensor name with a default under None."""
    rng = np.random.default_rng([ord(c) for c in name])
    d = head_dim or embd // heads
    meta = {"general.architecture": arch, "general.name": "tiny " + name.replace("phi3", "fused"), "general.alignment": 32}
    put = lambda k, v: meta.__setitem__(f"{arch}.{k}", v)
    put("context_length", context), put("embedding_length", embd), put("block_count", layers), put("feed_forward_length", ff)
    put("attention.head_count", heads), put("attention.head_count_kv", kv), put("attention.layer_norm_rms_epsilon", 1e-5)
    put("rope.dimension_count", d), put("rope.freq_base", 10000.0), put("vocab_size", VOCAB)
    if key_length or d != embd // heads:
        put("attention.key_length", d), put("attention.value_length", d)
    for k, v in (keys or {}).items():
        put(k, v)
    meta.update(TOKENIZER.get(arch, sentencepiece)())
    tensors = {}

    def matrix(tensor, rows, cols, gain, fmt=None):
        fmt = fmt or (body if isinstance(body, str) else body.get(tensor.split(".")[-2], body[None]))
        w = rng.normal(0, gain / math.sqrt(cols), (rows, cols))
        tensors[tensor] = ggufio.Tensor(fmt, (rows, cols), blocks.quantize(fmt, w, rng))

    def vector(tensor, n, mean, spread):
        tensors[tensor] = ggufio.Tensor("F32", (n,), rng.normal(mean, spread, n).astype("<f4").tobytes())

    matrix("token_embd.weight", VOCAB, embd, 1.6, embed)
    vector("output_norm.weight", embd, 1.6, 0.3)
    if own_head:
        matrix("output.weight", VOCAB, embd, 2.0, head)
    for k, v in (extra or {}).items():
        v = np.asarray(v, "<f4")
        tensors[k] = ggufio.Tensor("F32", v.shape, v.tobytes())
    bitnet, qk = arch.startswith("bitnet"), arch in ("qwen3", "gemma3")
    for i in range(layers):
        b = f"blk.{i}."
        vector(b + "attn_norm.weight", embd, 1.0, 0.25)
        if arch == "phi3":
            q, k, v = (rng.normal(0, g / math.sqrt(embd), (n * d, embd)) for n, g in ((heads, 1.6), (kv, 1.6), (kv, 1.0)))
            fmt = body if isinstance(body, str) else body.get("attn_qkv", body[None])
            raw = b"".join(blocks.quantize(fmt, x, rng) for x in (q, k, v))     # the parts keep their own ternary scales
            tensors[b + "attn_qkv.weight"] = ggufio.Tensor(fmt, ((heads + 2 * kv) * d, embd), raw)
        else:
            gain = 1.0 if qk else 1.6
            matrix(b + "attn_q.weight", heads * d, embd, gain), matrix(b + "attn_k.weight", kv * d, embd, gain), matrix(b + "attn_v.weight", kv * d, embd, 1.0)
        if arch == "qwen2":
            vector(b + "attn_q.bias", heads * d, 0, 0.7), vector(b + "attn_k.bias", kv * d, 0, 0.7), vector(b + "attn_v.bias", kv * d, 0, 0.4)
        if qk:
            vector(b + "attn_q_norm.weight", d, 1.5, 0.4), vector(b + "attn_k_norm.weight", d, 1.5, 0.4)
        if bitnet:
            vector(b + "attn_sub_norm.weight", heads * d, 1.0, 0.25)
        matrix(b + "attn_output.weight", embd, heads * d, 1.2)
        if arch == "gemma3":
            vector(b + "post_attention_norm.weight", embd, 0.8, 0.2)
        vector(b + "ffn_norm.weight", embd, 1.0, 0.25)
        if arch == "phi3":
            matrix(b + "ffn_up.weight", 2 * ff, embd, 1.5)
        else:
            matrix(b + "ffn_gate.weight", ff, embd, 1.5), matrix(b + "ffn_up.weight", ff, embd, 1.5)
        if bitnet:
            vector(b + "ffn_sub_norm.weight", ff, 1.0, 0.25)
        matrix(b + "ffn_down.weight", embd, ff, 1.2)
        if arch == "gemma3":
            vector(b + "post_ffw_norm.weight", embd, 0.8, 0.2)
        if name == "bitnet_scales":
            for t in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
                vector(f"{b}{t}.scale", 1, 1.0, 0.3)
    ids = [meta["tokenizer.ggml.bos_token_id"]] + [int(t) for t in rng.integers(3, 259, tokens - 1)]
    ids[tokens // 2:tokens // 2 + 6] = ids[2:8]                                   # a repetition, so that attention has something to find
    return dict(name=name, file=ggufio.File(meta, tensors), ids=ids, n_ctx=n_ctx, notes=notes, wrongs=wrongs or {})


# ---- mistakes ------------------------------------------------------------------------------------------------------------

def setting(**changes):
    def apply(file, p):
        for k, v in changes.items():
            setattr(p, k, v(p) if callable(v) and k != "activation" else v)
    return apply


def dropping(*suffixes, to=None):
    """Take tensors away (or set them to a constant), as an engine that forgets them would."""
    def apply(file, p):
        for k in [k for k in file.tensors if any(("." + k).endswith("." + s.lstrip(".")) for s in suffixes)]:
            if to is None:
                del file.tensors[k]
            else:
                shape = file.tensors[k].shape
                file.tensors[k] = ggufio.Tensor("F32", shape, np.full(shape, to, "<f4").tobytes())
    return apply


def keyed(**changes):
    """Resolve the plan again after a change of metadata; None removes the key. `__` stands for a dot."""
    def apply(file, p):
        for k, v in changes.items():
            k = f"{p.arch}.{k.replace('__', '.')}"
            file.meta.pop(k, None)
            if v is not None:
                file.meta[k] = v
        p.__dict__.update(forward.plan(file, 256).__dict__)
    return apply


def swapped_kv(file, p):
    """Query head h reads kv head h % kv_heads in place of h // share: reorder query heads and the columns of the output matrix."""
    h, kv, d = p.heads[0], p.kv_heads[0], p.head_dim
    order = [j for g in range(kv) for j in range(g, h, kv)]
    rows = np.concatenate([np.arange(j * d, j * d + d) for j in order])
    for i in range(p.layers):
        for t, axis in ((f"blk.{i}.attn_q.weight", 0), (f"blk.{i}.attn_output.weight", 1)):
            w = np.take(file.tensors[t].values(), rows, axis).astype("<f4")
            file.tensors[t] = ggufio.Tensor("F32", w.shape, w.tobytes())


def swapped_halves(name):
    def apply(file, p):
        for k in [k for k in file.tensors if k.endswith(name)]:
            w = file.tensors[k].values().astype("<f4")
            n = len(w) // 2
            w = np.concatenate([w[n:], w[:n]])
            file.tensors[k] = ggufio.Tensor("F32", w.shape, w.tobytes())
    return apply


def legacy_codes(file, p):
    """Read ternary TQ2_0 bytes in sequential order: trap 5."""
    for k, t in file.tensors.items():
        if t.fmt == "TQ2_0":
            raw = np.frombuffer(t.raw, np.uint8).reshape(-1, 66)
            codes = (raw[:, :64, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).astype(np.float32).reshape(len(raw), -1) - 1
            w = (codes * blocks.f16(raw, 64)).reshape(t.shape).astype("<f4")
            file.tensors[k] = ggufio.Tensor("F32", t.shape, w.tobytes())


HALVES, INTERLEAVED = setting(pairing="halves"), setting(pairing="interleaved")
SILU, RELU2 = setting(activation=forward.silu), setting(activation=forward.relu2)


# ---- cases ---------------------------------------------------------------------------------------------------------------

def llama3_factors(rot, base, original, factor=8.0, low=1.0, high=4.0):
    """The divisors a Llama 3.1 conversion stores: 1 for short waves, `factor` for long ones, a ramp between."""
    wave = 2 * math.pi * base ** (2.0 * np.arange(rot // 2) / rot)
    smooth = np.clip((original / wave - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def cases():
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
    yarn_wrongs = {"plain rope": keyed(rope__scaling__type="none"), "linear in place of yarn": keyed(rope__scaling__type="linear"),
                   "no magnitude": setting(magnitude=1.0), "magnitude squared": setting(magnitude=lambda p: p.magnitude ** 2)}
    long_factors, short_factors = 1.0 + np.arange(8) * 1.5, 1.0 + np.arange(8) * 0.15
    phi = {"rope.scaling.attn_factor": math.sqrt(1 + math.log(32.0) / math.log(64.0))}
    phi_extra = {"rope_factors_long.weight": long_factors, "rope_factors_short.weight": short_factors}

    yield make("llama_tied", "llama", "GQA 4:2, interleaved rope, tied head.", heads=4, kv=2,
               wrongs={"rope halves": HALVES, "kv heads interleaved": swapped_kv})
    yield make("llama_own_head", "llama", "Own output matrix; all matrices F16.", own_head=True, body="F16", layers=1,
               wrongs={"tied head": dropping("output.weight")})
    yield make("llama_arrays", "llama", "head_count_kv and feed_forward_length as arrays of one value a layer; key_length given; all heads keep their own kv.",
               heads=2, kv=2, keys={"attention.head_count_kv": [2, 2], "feed_forward_length": [48, 48]}, key_length=True, wrongs={"rope halves": HALVES})
    yield make("llama_rope_freqs", "llama", "Llama 3 frequency factors in rope_freqs.weight (divide).", keys={"rope.freq_base": 500000.0},
               extra={"rope_freqs.weight": llama3_factors(16, 500000.0, 64)}, layers=1,
               wrongs={"ignored": setting(freqs=lambda p: [f * p.factors for f in p.freqs]), "multiplied": setting(freqs=lambda p: [f * p.factors ** 2 for f in p.freqs])})
    yield make("llama_linear", "llama", "Linear scaling, factor 4.", keys={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, layers=1,
               wrongs={"ignored": keyed(rope__scaling__type="none")})
    yield make("llama_yarn", "llama", "YaRN: factor 4, original context 64; magnitude 1 + 0.1 ln 4.", keys=yarn, wrongs=yarn_wrongs)
    yield make("llama_yarn_attn", "llama", "YaRN with attn_factor 0.8: the magnitude is their product.", keys={**yarn, "rope.scaling.attn_factor": 0.8}, layers=1,
               wrongs={"key ignored": keyed(rope__scaling__attn_factor=None), "key replaces": setting(magnitude=0.8)})
    yield make("qwen3_yarn", "qwen3", "YaRN after per-head norms, head size 32.", head_dim=32, layers=1, keys=yarn, wrongs=yarn_wrongs)

    yield make("phi3", "phi3", "Fused qkv and gate-up; no factor lists; sliding_window 0 as Phi-4 files have it.", keys={"attention.sliding_window": 0},
               wrongs={"rope interleaved": INTERLEAVED, "up before gate": swapped_halves("ffn_up.weight")})
    yield make("phi3_window", "phi3", "sliding_window 8 is present and ignored (llama.cpp attends to everything).", keys={"attention.sliding_window": 8}, layers=1,
               wrongs={"window applied": setting(window=lambda p: [8] * p.layers)})
    yield make("phi3_short", "phi3", "Session context 256 within the original 512: short factors; attn_factor of the file multiplies cos and sin.", context=16384,
               keys={**phi, "rope.scaling.original_context_length": 512}, extra=phi_extra, layers=1,
               wrongs={"long factors": setting(freqs=lambda p: [f * short_factors / long_factors for f in p.freqs]), "no magnitude": setting(magnitude=1.0)})
    yield make("phi3_long", "phi3", "Session context 256 beyond the original 16: long factors from position 0; attn_factor of the file multiplies cos and sin.", context=512,
               keys={**phi, "rope.scaling.original_context_length": 16}, extra=phi_extra, layers=1,
               wrongs={"short factors": setting(freqs=lambda p: [f * long_factors / short_factors for f in p.freqs]), "no magnitude": setting(magnitude=1.0)})
    yield make("phi3_partial", "phi3", "Partial rotary: 12 of 16 dimensions turn, pairs (i, i + 6).", keys={"rope.dimension_count": 12}, own_head=True, layers=1,
               wrongs={"full rotary": keyed(rope__dimension_count=16), "exponent over head size": setting(freqs=lambda p: [10000.0 ** (-np.arange(6) / 8)] * p.layers)})

    sub = {"no attention sub-norm": dropping("attn_sub_norm.weight"), "no ffn sub-norm": dropping("ffn_sub_norm.weight")}
    yield make("bitnet", "bitnet", "Sub-norms, SiLU, rope halves, tied.", layers=1, wrongs={"relu squared": RELU2, "rope interleaved": INTERLEAVED, **sub})
    yield make("bitnet_scales", "bitnet", "Optional .scale [1] after each projection.", layers=1,
               wrongs={"ignored": dropping(".scale"), **{f"{t} ignored": dropping(t) for t in ("attn_q.scale", "attn_k.scale", "attn_output.scale", "ffn_gate.scale", "ffn_down.scale")}})
    yield make("bitnet_relu2_key", "bitnet", "bitnet.hidden_activation = relu2.", keys={"hidden_activation": "relu2"}, layers=1, wrongs={"silu": SILU})
    yield make("bitnet_b158", "bitnet-b1.58", "Squared ReLU, sub-norms, rope halves, tied; no tokenizer.ggml.pre.", heads=4, kv=1,
               wrongs={"silu": SILU, "rope interleaved": INTERLEAVED, **sub})
    yield make("bitnet_25", "bitnet-25", "As bitnet-b1.58, with an own output matrix.", own_head=True, layers=1, wrongs={"silu": SILU, "tied": dropping("output.weight")})

    yield make("qwen2", "qwen2", "Biases on q, k, v.", heads=4, kv=2, wrongs={f"no {c} bias": dropping(f"attn_{c}.bias") for c in "qv"} | {"no biases": dropping(".bias"), "rope interleaved": INTERLEAVED})
    yield make("qwen3", "qwen3", "Per-head q and k norms before rope; head size 24 while width / heads is 16; tied.", heads=2, kv=1, head_dim=24,
               wrongs={"no q norm": dropping("attn_q_norm.weight"), "no k norm": dropping("attn_k_norm.weight"), "scale by width / heads": setting(query_scale=16 ** -0.5)})

    gemma = {"attention.sliding_window": 8, "rope.freq_base": 1000000.0}
    yield make("gemma3", "gemma3", "Seven layers, layer 5 global with base 1000000, the others local: window 8, base 10000.", heads=2, kv=1, head_dim=16, ff=32, layers=7, keys=gemma, body="F16", key_length=True,
               wrongs={"no window": setting(window=[0] * 7), "window one short": setting(window=lambda p: [w - 1 if w else 0 for w in p.window]),
                       "window one long": setting(window=lambda p: [w + 1 if w else 0 for w in p.window]),
                       "global base everywhere": setting(freqs=lambda p: [p.freqs[5]] * 7), "local base everywhere": setting(freqs=lambda p: [p.freqs[0]] * 7),
                       "all local": setting(window=[8] * 7),
                       "no embedding scale": setting(embed_scale=1.0), "no post-norm": dropping("post_attention_norm.weight"),
                       "silu": SILU})
    yield make("gemma3_pattern", "gemma3", "sliding_window_pattern 2 with an own local base, and linear scaling that applies to the global layers only; head size 24 while width / heads is 16.", heads=2, kv=1, head_dim=24, layers=3, body="F16",
               keys={**gemma, "attention.sliding_window_pattern": 2, "rope.freq_base": 2000.0, "rope.freq_base_swa": 500.0, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
               wrongs={"pattern 6": keyed(attention__sliding_window_pattern=None), "no scaling": keyed(rope__scaling__type="none"), "scaling everywhere": setting(freqs=lambda p: [f / 8 if w else f for f, w in zip(p.freqs, p.window)]),
                       "local base 10000": keyed(rope__freq_base_swa=None), "scale by width / heads": setting(query_scale=16 ** -0.5), "no post-norm": dropping("post_ffw_norm.weight")})

    yield make("llama_tq2_0", "llama", "TQ2_0 body, Q4_0 embedding and tied head.", embd=256, heads=4, kv=1, ff=256, layers=1, embed="Q4_0", body="TQ2_0", wrongs={"sequential codes": legacy_codes})
    yield make("llama_tq1_0", "llama", "TQ1_0 body with a Q4_0 matrix, Q4_K embedding, Q6_K output: what llama-quantize writes.", embd=256, heads=4, kv=1, ff=256, layers=1, own_head=True,
               embed="Q4_K", head="Q6_K", body={None: "TQ1_0", "attn_v": "Q4_0"})
    yield make("bitnet_b158_i2_s", "bitnet-b1.58", "I2_S body, F16 embedding: the official 2B-4T layout.", embd=128, heads=4, kv=1, ff=384, layers=1, body="I2_S", wrongs={"silu": SILU})
    yield make("llama_i2_s", "llama", "I2_S body, Q8_0 embedding and tied head: a Falcon 1.58-bit layout.", embd=128, heads=4, kv=2, ff=128, embed="Q8_0", body="I2_S")
    yield make("llama_k_quants", "llama", "Q4_K, Q5_K, Q6_K mixed, Q4_K embedding.", embd=256, heads=8, kv=1, ff=256, layers=1, embed="Q4_K",
               body={None: "Q4_K", "attn_k": "Q5_K", "attn_v": "Q6_K", "attn_output": "Q5_K", "ffn_down": "Q6_K"})
    yield make("qwen2_old_quants", "qwen2", "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 mixed, Q5_0 embedding.", embd=64, heads=4, kv=2, ff=96, embed="Q5_0",
               body={None: "Q8_0", "attn_q": "Q4_0", "attn_k": "Q4_1", "attn_v": "Q5_0", "attn_output": "Q5_1", "ffn_up": "Q4_1", "ffn_gate": "Q4_0"})
    yield make("qwen3_q1_0", "qwen3", "Q1_0 everywhere, embedding too: the Bonsai 1-bit layout.", embd=128, heads=2, kv=1, head_dim=128, ff=256, embed="Q1_0", body="Q1_0", layers=1)
    yield make("qwen3_q2_0", "qwen3", "Type 42 with groups of 64 everywhere.", embd=128, heads=2, kv=1, head_dim=64, ff=128, embed="Q2_0", body="Q2_0", layers=1)
    yield make("qwen3_q2_0_g128", "qwen3", "Type 42 with groups of 128 (legacy) everywhere: to be told by the size of the tensors.", embd=128, heads=2, kv=1, head_dim=64, ff=128, embed="Q2_0_G128", body="Q2_0_G128", layers=1)


def worst(a, b):
    """Largest difference of next_logprob and of the last logits."""
    return max(float(np.abs(np.array(a["next_logprob"]) - b["next_logprob"]).max()), float(np.abs(a["last_logits"] - b["last_logits"]).max()))


def describe(case):
    """The golden record of a case. Asserts that every listed mistake is visible in it."""
    file, ids, n_ctx = case["file"], case["ids"], case["n_ctx"]
    right = forward.golden(file, ids, n_ctx)
    exact = all(t.fmt in forward.FLOATS for t in file.tensors.values())
    error = 0.0
    if not exact:
        for group in (32, 0):
            rough = forward.golden(file, ids, n_ctx, acts=lambda x: forward.int8(x, group))
            error = max(error, float(np.abs(np.array(rough["next_logprob"]) - right["next_logprob"]).max()))
    seen = {}
    for name, apply in case["wrongs"].items():
        bad = ggufio.File(copy.deepcopy(file.meta), dict(file.tensors))
        p = forward.plan(bad, n_ctx)
        apply(bad, p)
        seen[name] = round(worst(right, forward.golden(bad, ids, n_ctx, p)), 3)
        assert seen[name] > max(0.02, 3 * error), (case["name"], name, seen[name], error)
    r = lambda v, n: [round(float(x), n) for x in v]
    return {"model": case["name"] + ".gguf", "architecture": file.meta["general.architecture"], "notes": case["notes"], "n_ctx": n_ctx, "float_weights": exact,
            "int8_error": round(error, 4), "mistakes": seen, "ids": ids, "mean_logprob": float(np.mean(right["next_logprob"])), "next_logprob": r(right["next_logprob"], 5),
            "top1": right["top1"], "top1_gap": r(right["top1_gap"], 4), "last_logits": r(right["last_logits"], 4)}


def main(out, only):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for case in cases():
        if only and case["name"] not in only:
            continue
        ggufio.write(out / f"{case['name']}.gguf", case["file"])
        again = ggufio.read(out / f"{case['name']}.gguf")
        assert [(k, t.fmt, t.raw) for k, t in again.tensors.items()] == [(k, t.fmt, t.raw) for k, t in case["file"].tensors.items()], case["name"]
        case["file"] = again                                                      # metadata as the file holds it: f32, not f64
        record = describe(case)
        (out / f"{case['name']}.json").write_text(json.dumps(record, separators=(",", ":")) + "\n")
        size = (out / f"{case['name']}.gguf").stat().st_size
        print(f"{case['name']:18} {size / 1e3:6.0f} kB  int8 {record['int8_error']:.3f}  mean {record['mean_logprob']:7.3f}  gap {np.median(record['top1_gap']):.2f}  mistakes {record['mistakes']}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
