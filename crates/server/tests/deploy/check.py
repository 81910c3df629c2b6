"""Holds what lies in deploy/ against the program: as far as it can be without a container engine and a cluster.

    pip install pyyaml
    python check.py target/release/nexaquant

Every flag exists, the server starts as the manifest starts it, its probes are answered without a key, it drains sooner than
it is killed, and needs less memory than it is given. Prints a line for each check and ends with code 1 if one fails.
"""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import yaml

PROGRAM = sys.argv[1]
ROOT = pathlib.Path(__file__).parents[4]
DEPLOY = ROOT / "deploy"
HELP = subprocess.run([PROGRAM, "serve", "--help"], capture_output=True, text=True, check=True).stdout
failed = 0


def check(name):
    def run(work):
        global failed
        try:
            said = work()
            print("ok    ", name + (f": {said}" if said else ""), flush=True)
        except Exception as error:  # every failure is a line of the report
            failed += 1
            print("FAILED", name, repr(error), flush=True)

    return run


def default(flag):
    """What the program says a flag is unless told otherwise."""
    found = re.search(rf"--{flag}\b.*?\[default: ([^\]]+)\]", HELP, re.S)
    assert found, f"--{flag} has no default in serve --help"
    return found[1]


def flags(words):
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"^\s+(-\w, )?{word.split('=')[0]}\b", HELP, re.M), f"{word} is no flag of serve"


def accepted(words):
    """`config check` takes what `serve` takes, and does everything but serving."""
    done = subprocess.run([PROGRAM, "config", "check", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def bytes_of(text):
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]*)", text).groups()
    return float(number) * {"Mi": 2**20, "MiB": 2**20, "MB": 1e6, "Gi": 2**30, "": 1}[unit]


container = (DEPLOY / "Containerfile").read_text()
lines = dict(re.findall(r"^(ENTRYPOINT|CMD|EXPOSE|USER|WORKDIR) (.*)$", container, re.M))
entry = json.loads(lines["ENTRYPOINT"])
manifests = list(yaml.safe_load_all((DEPLOY / "kubernetes/nexaquant.yaml").read_text()))
deployment, service = manifests
pod = deployment["spec"]["template"]["spec"]
box = pod["containers"][0]


@check("Containerfile")
def _():
    assert entry[:2] == ["nexaquant", "serve"]
    flags(entry[2:] + json.loads(lines["CMD"]))
    for source in re.findall(r"^COPY (?!--from)(\S+)", container, re.M):
        assert (ROOT / source).exists(), source
    built = re.search(r"cargo build (.*)", container)[1]
    assert "--locked" in built and "-p nexaquant-cli" in built
    assert list((ROOT / "models").glob("*.gguf"))
    assert lines["EXPOSE"] == default("port"), "the port that is exposed is the one it listens on"
    assert int(lines["USER"].split(":")[0]) > 0, "not as root"
    return accepted(entry[2:] + json.loads(lines["CMD"]))


@check("Kubernetes: kinds, labels and ports belong together")
def _():
    assert (deployment["kind"], deployment["apiVersion"]) == ("Deployment", "apps/v1")
    assert (service["kind"], service["apiVersion"]) == ("Service", "v1")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    names = {port["name"]: port["containerPort"] for port in box["ports"]}
    assert str(names["http"]) == lines["EXPOSE"]
    assert all(port["targetPort"] in names for port in service["spec"]["ports"])
    probes = [box[kind]["httpGet"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert all(probe["port"] in names for probe in probes)
    # A server that drains is alive: told to stop, it must not be killed for not being ready.
    assert box["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert pod["securityContext"]["runAsNonRoot"] and str(pod["securityContext"]["runAsUser"]) == lines["USER"].split(":")[0]
    assert not box["securityContext"]["allowPrivilegeEscalation"] and box["securityContext"]["readOnlyRootFilesystem"]
    assert pod["terminationGracePeriodSeconds"] > int(default("drain"))


@check("Kubernetes: the server starts as it is told, and its probes are answered")
def _():
    flags(box["args"])
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port = made.getsockname()[1]
    words = [*entry[1:], *box["args"], "--port", str(port)]
    variable = box["env"][0]["name"]
    assert variable in HELP, f"{variable} is not in serve --help"
    begun = time.monotonic()
    server = subprocess.Popen([PROGRAM, *words], cwd=ROOT, env={**os.environ, variable: "s3cret"}, stderr=subprocess.DEVNULL)
    try:
        def get(path, body=None, key=None):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body and json.dumps(body).encode(), headers)
            try:
                return urllib.request.urlopen(request, timeout=60).status
            except urllib.error.HTTPError as error:
                return error.code
            except OSError:
                return None

        while get(box["startupProbe"]["httpGet"]["path"]) != 200:
            assert server.poll() is None and time.monotonic() - begun < box["startupProbe"]["failureThreshold"] * box["startupProbe"]["periodSeconds"]
            time.sleep(0.01)
        ready = time.monotonic() - begun
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert get(box[kind]["httpGet"]["path"]) == 200, kind
        assert get("/v1/models") == 401 and get("/v1/models", key="s3cret") == 200
        for model in ("alpha", "beta", "gamma"):
            body = {"model": model, "messages": [{"role": "user", "content": "A story."}], "max_tokens": 64}
            assert get("/v1/chat/completions", body, "s3cret") == 200
        used = int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{server.pid}/status").read_text())[1]) * 1024
        assert used < bytes_of(box["resources"]["limits"]["memory"]), used
        begun = time.monotonic()
        server.terminate()
        assert server.wait(pod["terminationGracePeriodSeconds"]) == 0
        return f"ready after {ready * 1000:.0f} ms, at most {used / 2**20:.0f} MiB with the pages of its files, gone after {(time.monotonic() - begun) * 1000:.0f} ms"
    finally:
        server.kill()


@check("systemd unit")
def _():
    unit = (DEPLOY / "nexaquant.service").read_text()
    for command in re.findall(r"^Exec\w+=\S*/nexaquant (.*)$", unit, re.M):
        words = command.split()
        assert words[0] in ("serve", "config"), command
        flags([word for word in words if word.startswith("--")])
    assert int(re.search(r"^TimeoutStopSec=(\d+)", unit, re.M)[1]) > int(default("drain"))
    if not shutil.which("systemd-analyze"):
        return "systemd-analyze is not here"
    there = pathlib.Path("/usr/local/bin/nexaquant").exists()
    said = subprocess.run(["systemd-analyze", "verify", DEPLOY / "nexaquant.service"], capture_output=True, text=True).stderr
    wrong = [line for line in said.splitlines() if "nexaquant.service" in line and (there or "not executable" not in line)]
    assert not wrong, wrong


@check("server.toml")
def _():
    said = accepted(["--config", str(DEPLOY / "server.toml")])
    # What it shows as a comment is a setting, too.
    for key in re.findall(r"^# (\w+) =", (DEPLOY / "server.toml").read_text(), re.M):
        flags([f"--{key.replace('_', '-')}"])
    return said


@check("litellm.yaml")
def _():
    config = yaml.safe_load((DEPLOY / "litellm.yaml").read_text())
    for model in config["model_list"]:
        what = model["litellm_params"]
        assert what["model"] == f"openai/{model['model_name']}" and (ROOT / f"models/{model['model_name']}.gguf").exists()
        assert re.fullmatch(r"http://127\.0\.0\.1:808[01]/v1", what["api_base"])


sys.exit(1 if failed else 0)
