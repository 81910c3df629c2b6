"""Prove the forward pass against the recorded values of the bundled trained models.

Usage: python3 check_models.py MODELS_FOLDER   (holds alpha.gguf ... and golden/alpha.json ...)
"""
import json, pathlib, sys
import numpy as np
import forward, ggufio


def main(folder):
    folder, worst = pathlib.Path(folder), 0.0
    for path in sorted(folder.glob("golden/*.json")):
        record = json.loads(path.read_text())
        file = ggufio.read(folder / record["model"])
        for case in record["cases"]:
            got = forward.golden(file, case["ids"], 512)
            error = float(np.abs(np.array(got["next_logprob"]) - case["next_logprob"]).max())
            wrong = [i for i, t in enumerate(case["top1"]) if got["top1"][i] != t and case["top1_gap"][i] > 1e-4]
            print(f"{record['model']:12} {case['text'][:24]:26} largest next_logprob difference {error:.1e}, wrong choices {len(wrong)}")
            worst = max(worst, error if not wrong else 9.0)
    assert worst < 1e-4, worst


if __name__ == "__main__":
    main(sys.argv[1])
