"""LiteLLM's proxy in front of two servers, with the configuration in deploy/.

    pip install 'litellm[proxy]' openai
    python proxy.py target/release/nexaquant

Prints a line for each check and ends with code 1 if one fails.
"""

import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import openai

PROGRAM = sys.argv[1]
CONFIG = pathlib.Path(__file__).parents[4] / "deploy/litellm.yaml"
KEY = "sk-a-key-for-this-test-alone-0123456789"
ASK = [{"role": "user", "content": "What is your name?"}]
failed = 0


def check(name):
    def run(work):
        global failed
        try:
            work()
            print("ok    ", name, flush=True)
        except Exception as error:  # every failure is a line of the report
            failed += 1
            print("FAILED", name, repr(error)[:600], flush=True)

    return run


def free_port():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def get(url):
    return urllib.request.urlopen(url, timeout=5).read().decode()


def answered(port):
    """How many requests a server has answered."""
    found = re.findall(r'^nexaquant_requests_total\{.*finished_reason="(?:stop|length)"\} (\d+)', get(f"http://127.0.0.1:{port}/metrics"), re.M)
    return sum(map(int, found))


def wait(url, seconds=120, alive=None):
    end = time.monotonic() + seconds
    while True:
        try:
            return get(url)
        except OSError:
            if time.monotonic() > end or (alive and alive.poll() is not None):
                raise
            time.sleep(0.2)


# The configuration as it is, but for the ports.
text = CONFIG.read_text()
ports = {port: str(free_port()) for port in sorted(set(re.findall(r"127\.0\.0\.1:(\d+)", text)))}
assert len(ports) == 2, ports
for old, new in ports.items():
    text = text.replace(f":{old}/", f":{new}/")
first, second = map(int, ports.values())
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
servers = [subprocess.Popen([PROGRAM, "serve", "alpha", "beta", "--budget", "10MB", "--port", str(port)], **quiet) for port in (first, second)]
with tempfile.TemporaryDirectory() as folder:
    config = pathlib.Path(folder) / "litellm.yaml"
    config.write_text(text)
    port = free_port()
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY}
    log = open(pathlib.Path(folder) / "log", "w+")
    litellm = pathlib.Path(sys.executable).with_name("litellm")
    proxy = subprocess.Popen([litellm, "--config", config, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log, env=environment)
    try:
        for one in (first, second):
            wait(f"http://127.0.0.1:{one}/readyz")
        wait(f"http://127.0.0.1:{port}/health/liveliness", alive=proxy)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)
        ask = lambda **more: client.chat.completions.create(**{"model": "alpha", "messages": ASK, "temperature": 0, "max_tokens": 16, **more})

        @check("requests go to both servers, and both say the same")
        def _():
            texts = {ask().choices[0].message.content for _ in range(20)}
            assert len(texts) == 1 and texts.pop()
            counts = [answered(one) for one in (first, second)]
            assert sum(counts) == 20 and min(counts) > 0, counts

        @check("streams pass through, usage too")
        def _():
            chunks = list(ask(stream=True, stream_options={"include_usage": True}))
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == ask().choices[0].message.content and chunks[-1].usage.completion_tokens > 0

        @check("a model that only one of them is asked for")
        def _():
            before = answered(second)
            assert ask(model="beta").choices[0].message.content and answered(second) == before

        @check("tools pass through")
        def _():
            tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome"]}},
                    "required": ["city"], "additionalProperties": False}}}
            choice = ask(tools=[tool], tool_choice="required", max_tokens=60).choices[0]
            assert choice.finish_reason == "tool_calls" and choice.message.tool_calls[0].function.name == "weather"

        @check("a mistake stays a mistake")
        def _():
            try:
                ask(temperature=-1)
            except openai.BadRequestError as error:
                assert "temperature" in str(error)
            else:
                raise AssertionError("it was answered")

        @check("one server dies, and nobody notices")
        def _():
            servers[1].kill()
            servers[1].wait()
            assert all(ask().choices[0].message.content for _ in range(10))
    except Exception:
        log.seek(0)
        sys.stderr.write(log.read()[-2000:])
        raise
    finally:
        for process in (proxy, *servers):
            process.terminate()
            process.wait()
sys.exit(1 if failed else 0)
