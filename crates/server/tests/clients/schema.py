"""Holds a running server against its own document, with schemathesis: no 5xx, no answer and no refusal that is not in it.

    pip install schemathesis
    nexaquant serve alpha beta gamma --budget 10MB --max-tokens 8
    python schema.py http://127.0.0.1:8080 [--strict]

With --strict it also looks for requests that the document forbids and the server takes, with other cases each time.
The document does not know which models there are, so their names are put in first: requests would end at 404 otherwise.
"""

import json
import subprocess
import sys
import tempfile
import urllib.request

STRICT, (URL,) = "--strict" in sys.argv, [word for word in sys.argv[1:] if word != "--strict"]
get = lambda path: json.load(urllib.request.urlopen(URL + path))
document = get("/openapi.json")
names = [model["id"] for model in get("/v1/models")["data"]] + ["none"]

for schema in document["components"]["schemas"].values():
    if "model" in schema.get("required", []):
        schema["properties"]["model"]["enum"] = names
for path, item in document["paths"].items():
    for method, operation in item.items():
        for parameter in operation.get("parameters", []):
            # Not to take away what the others need.
            parameter["schema"]["enum"] = ["none"] if method == "delete" else names
# It has no end.
del document["paths"]["/v1/m3/events"]

with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    json.dump(document, file)
    file.flush()
    # A request that the document allows may still be refused, with a reason that no schema can say: a budget too small, a
    # prompt too long, a grammar that cannot be followed.
    skipped = ["positive_data_acceptance"] + ([] if STRICT else ["negative_data_rejection"])
    cases = ["--generation-database", "none"] if STRICT else ["--generation-deterministic"]
    sys.exit(subprocess.run([
        "schemathesis", "run", file.name, "--url", URL, "--exclude-checks", ",".join(skipped), "--phases", "examples,coverage,fuzzing",
        "--max-examples", "25", "--request-timeout", "30", "--warnings", "off", "--no-color", *cases]).returncode)
