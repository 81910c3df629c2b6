"""Record what llama.cpp says: token ids of awkward strings, greedy continuations, logits.

Usage: python3 make_peers.py OUTPUT_FOLDER [OUTSIDE_MODEL.gguf ...]

The bundled and tiny models are always recorded (tokenizer only); outside models, named by path, also with continuations, compared
against the float64 reference on the way. See peer.py for what to install.
"""
import hashlib, json, pathlib, sys
import numpy as np
import forward, ggufio, peer

HERE = pathlib.Path(__file__).resolve().parent
STRINGS = [
    "", " ", "  ", "\n", "\n\n", " \n \n", "\t", "\r\n", "a", " a", "a ", "  a  b   c", "Hello world", "Hello, world! How are you?",
    "I'm you're we'll they've it's I'd don't", "I'M YOU'RE IT'S", "don\u2019t", "0", "42", "1234567890", "3.14159 1,000,000 -7e-3", "2024-05-06T07:08:09Z",
    "caf\u00e9 na\u00efve", "cafe\u0301", "\u00df\u1e9e\u0130\u0131", "\u4f60\u597d\uff0c\u4e16\u754c", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8", "\ud55c\uad6d\uc5b4", "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    "\u041f\u0440\u0438\u0432\u0435\u0442", "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea", "\u0000a\u0001b\u007f", "\u00a0\u2003\u200b\ufeffx", "\U000f1234\ud7ff",
    "<s>", "</s>", "<|endoftext|>", "<|im_start|>user\nhi<|im_end|>\n", "<start_of_turn>user\nhi<end_of_turn>\n", "<bos><eos><unk><pad>", "<0x0A>", "\u2581a\u2581\u2581b", "\u0120a",
    "fn main() {\n    println!(\"{:?}\", x[0..=3]);\n}\n", "https://example.com/a_b?c=d&e=%20#f", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "!!!???...---___***", "CamelCaseAndsnake_case", "x=1;y=2", "a\n\n\nb", "end with newline\n", "   leading", "tab\tinside", "mixed\u00e9\u4f60\U0001f600 end",
]
PROMPTS = ["The capital of France is", "Once upon a time", "def fibonacci(n):\n", "The three primary colors are", "1, 2, 3, 4,"]


def tokens(model):
    """For each string: ids without special tokens read or added, and with both where that differs."""
    out = []
    for s in STRINGS:
        plain, special, full = model.tokenize(s, False, False), model.tokenize(s, False, True), model.tokenize(s, True, True)
        entry = {"text": s, "ids": plain}
        if special != plain:
            entry["ids_parse_special"] = special
        if full != special:
            entry["ids_add_and_parse_special"] = full
        back = model.detokenize(plain).decode("utf-8", "replace")
        if back != s:
            entry["detokenized"] = back
        out.append(entry)
    return out


def continuations(model, path):
    file, out = ggufio.read(path), []
    for text in PROMPTS:
        ids = model.tokenize(text, True, False)
        more, gaps = model.greedy(ids, 32)
        seq = ids + more
        row = model.feed(seq)
        best = np.argsort(-row[-1], kind="stable")[:10]
        peer_lp = [float(r[t] - r.max() - np.log(np.exp(r.astype(np.float64) - r.max()).sum())) for r, t in zip(row, seq[1:])]
        ref = forward.golden(file, seq, 512)
        d = np.abs(np.array(ref["next_logprob"]) - peer_lp)
        wrong = [i for i in range(len(seq)) if ref["top1"][i] != int(row[i].argmax())]
        print(f"  {text!r:34} reference differs: mean {d.mean():.4f} max {d.max():.4f}; other choice at {[(i, round(ref['top1_gap'][i], 3)) for i in wrong]}", flush=True)
        out.append({"prompt": text, "ids": ids, "greedy": more, "greedy_gap": gaps, "text": model.detokenize(more).decode("utf-8", "replace"),
                    "next_logprob": [round(v, 4) for v in peer_lp], "last_top10": [[int(t), round(float(row[-1][t]), 3)] for t in best],
                    "reference_next_logprob": [round(v, 4) for v in ref["next_logprob"]], "reference_top1_gap": [round(v, 3) for v in ref["top1_gap"]], "reference_top1": ref["top1"]})
    return out


def main(out, outside):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    root = HERE.parents[3]
    own = [root / "models/alpha.gguf", root / "models/gamma.gguf", HERE.parent / "golden/llama_tied.gguf", HERE.parent / "golden/qwen2.gguf", HERE.parent / "golden/bitnet_25.gguf"]
    for path in own + [pathlib.Path(p) for p in outside]:
        print(path.name, flush=True)
        record = {"model": path.name, "peer": peer.NAME}
        if path.name == "bitnet_25.gguf":                                   # an architecture llama.cpp does not know: rename it for the tokenizer
            file = ggufio.read(path)
            file.meta = {k.replace("bitnet-25.", "bitnet."): "bitnet" if v == "bitnet-25" else v for k, v in file.meta.items()}
            path = pathlib.Path(out, "renamed.gguf")
            ggufio.write(path, file)
        if path in own or path.name == "renamed.gguf":
            record["tokens"] = tokens(peer.Model(path, vocab_only=True))
        else:
            record["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            model = peer.Model(path)
            record["tokens"], record["continuations"] = tokens(model), continuations(model, path)
        pathlib.Path(out, "renamed.gguf").unlink(missing_ok=True)
        entries = lambda key: ",\n".join(json.dumps(e, separators=(",", ":")) for e in record[key])
        head = json.dumps({k: v for k, v in record.items() if isinstance(v, str)}, separators=(",", ":"))[:-1]
        body = "".join(f',\n"{k}":[\n{entries(k)}\n]' for k in ("tokens", "continuations") if k in record)
        (out / (record["model"].removesuffix(".gguf") + ".json")).write_text(head + body + "}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
