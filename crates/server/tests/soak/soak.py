"""Loads a server for minutes and looks for what breaks, leaks or waits for ever. Needs nothing but Python, and Linux.

    python soak.py target/release/nexaquant            # three to six minutes
    python soak.py target/release/nexaquant --short    # half a minute

Prints a line for each part, with what was measured, and ends with code 1 if one fails.
"""

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time

from wire import Client, request

PROGRAM = sys.argv[1]
SHORT = "--short" in sys.argv
NAMES = ("alpha", "beta", "gamma")
QUESTIONS = ("What is your name?", "Tell me about the sea.", "Where do birds sleep?", "Tell me a story about a little fox.")
CHAT = "/v1/chat/completions"
BUDGET = 12_000_000
# The server's own defaults: those that compute, and those that wait.
CAPACITY = 16 + 64
failed = 0


class Server:
    def __init__(self, *more):
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            [PROGRAM, "serve", *NAMES, "--budget", str(BUDGET), "--port", "0", *more],
            stderr=subprocess.PIPE, env={**os.environ, "NEXAQUANT_LOG": "error"})
        line = self.process.stderr.readline().decode()
        self.port = int(re.search(r":(\d+)\s*$", line)[1])

    def rss(self):
        """Memory of its own, in MB: without the pages of mapped files, which are the system's."""
        status = open(f"/proc/{self.process.pid}/status").read()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1000

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    async def get(self, path):
        client = Client(self.port)
        try:
            return await client.ask(path)
        finally:
            client.close()

    async def quiet(self, seconds=20):
        """Waits until nobody is inside. Then nothing is held but weights and what is kept for questions that begin alike, and that
        goes with its model."""
        end = time.monotonic() + seconds
        while True:
            ledger = (await self.get("/v1/m3/residency")).json()["ledger"]
            left = {name: ledger[name] for name in ("running", "waiting", "scratch") if ledger[name]}
            if not left:
                break
            assert time.monotonic() < end, f"still there: {left}"
            await asyncio.sleep(0.05)
        for name in NAMES:
            client = Client(self.port)
            gone = await client.ask(f"/v1/m3/models/{name}/unload", {})
            assert gone.status == 200, gone
            client.close()
        ledger = gone.json()["ledger"]
        assert not any(ledger[name] for name in ("kv", "scratch")), f"still there: {ledger}"
        return ledger


def chat(model, question=QUESTIONS[0], tokens=20, **more):
    return {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": tokens, **more}


def endless(model):
    return chat(model, QUESTIONS[3], 480, ignore_eos=True, stream=True)


def text(answer):
    assert answer.status == 200, (answer.status, answer.body)
    return answer.json()["choices"][0]["message"]["content"]


def share(times, part):
    return sorted(times)[min(len(times) - 1, int(len(times) * part))] * 1000


def part(work):
    global failed
    begun = time.monotonic()
    try:
        said = asyncio.run(work())
        print(f"ok     {work.__doc__}: {said} ({time.monotonic() - begun:.0f} s)", flush=True)
    except Exception as error:  # every failure is a line of the report
        failed += 1
        print(f"FAILED {work.__doc__}: {error!r}", flush=True)


async def crowd():
    """32 clients over three models, half as much memory"""
    client = Client(server.port)
    alone = {(name, question): text(await client.ask(CHAT, chat(name, question))) for name in NAMES for question in QUESTIONS}
    times = []

    async def one(i):
        mine = Client(server.port)
        for n in range(3 if SHORT else 15):
            name, question = NAMES[(i + n) % 3], QUESTIONS[(i // 3 + n) % 4]
            begun = time.monotonic()
            assert text(await mine.ask(CHAT, chat(name, question))) == alone[name, question], (name, question)
            times.append(time.monotonic() - begun)
        mine.close()

    begun = time.monotonic()
    await asyncio.gather(*(one(i) for i in range(32)))
    took = time.monotonic() - begun
    client.close()
    ledger = await server.quiet()
    assert ledger["high_water"] <= ledger["budget"] == BUDGET, ledger
    return (f"{len(times)} answers as alone, {len(times) / took:.1f} a second, half within {share(times, 0.5):.0f} ms, "
            f"99 % within {share(times, 0.99):.0f} ms; at most {ledger['high_water']:,} of {BUDGET:,} bytes")


async def leak():
    """requests one after another"""
    async def some(count):
        left = iter(range(count))

        async def one():
            mine = Client(server.port)
            for i in left:
                text(await mine.ask(CHAT, chat("alpha" if i % 50 else "beta", QUESTIONS[i % 4], 4)))
            mine.close()

        await asyncio.gather(*(one() for _ in range(8)))
        await server.quiet()

    many = 500 if SHORT else 5000
    await some(many // 10)
    before, open_before, begun = server.rss(), server.descriptors(), time.monotonic()
    await some(many)
    rate, after = many / (time.monotonic() - begun), server.rss()
    assert after < before + 4, f"{before:.1f} MB before, {after:.1f} MB after"
    await asyncio.sleep(0.2)
    assert server.descriptors() <= open_before, (open_before, server.descriptors())
    return f"{many} answers, {rate:.0f} a second, the process at {before:.1f} MB before and {after:.1f} MB after"


async def overload():
    """four times as many clients as there are places"""
    end = time.monotonic() + (5 if SHORT else 60)
    accepted, before_it, slow, healths, wrong = [], [], [], [], []

    async def one(i):
        mine = Client(server.port)
        while time.monotonic() < end:
            begun, ended = time.monotonic(), len(accepted)
            answer = await mine.ask(CHAT, chat("alpha", QUESTIONS[i % 4], 24))
            took = time.monotonic() - begun
            if answer.status == 200:
                before_it.append(len(accepted) - ended)
                accepted.append(took)
            elif answer.status == 429 and int(answer.headers["retry-after"]) >= 1 and answer.json()["error"]["code"] == "queue_full":
                slow.append(took)
                await asyncio.sleep(0.1)
            else:
                wrong.append((answer.status, answer.body))
        mine.close()

    async def health():
        while time.monotonic() < end:
            begun = time.monotonic()
            assert (await server.get("/health")).status == 200
            healths.append(time.monotonic() - begun)
            await asyncio.sleep(0.2)

    await asyncio.gather(health(), *(one(i) for i in range(4 * CAPACITY)))
    assert not wrong, wrong[:3]
    assert accepted and slow, (len(accepted), len(slow))
    # However fast the machine is: nobody waits for more than those who were inside before, and as many again of unequal length.
    assert max(before_it) <= 2 * CAPACITY, max(before_it)
    await server.quiet()
    return (f"{len(accepted)} answers, {len(slow)} times 429; accepted ones took {share(accepted, 0.5):.0f} ms, at most {share(accepted, 1):.0f} ms and {max(before_it)} others; "
            f"429 took at most {share(slow, 1):.0f} ms; {len(healths)} times healthy, at most {share(healths, 1):.0f} ms")


async def readers():
    """slow readers"""
    before = server.rss()
    slow = [await Client(server.port).open(receive_buffer=2048) for _ in range(40)]
    for client in slow:
        await client.send(request(CHAT, endless("alpha")))
    # All are computed, though nobody reads; and then others are served at once.
    await server.quiet(120)
    most, begun = server.rss(), time.monotonic()
    client = Client(server.port)
    text(await client.ask(CHAT, chat("beta", tokens=4)))
    took = time.monotonic() - begun
    ends = []
    for one in slow:
        answer = await one.answer()
        ends.append(answer.body.endswith(b"data: [DONE]\n\n"))
        one.close()
    client.close()
    assert all(ends), f"{ends.count(False)} streams have no end"
    assert most < before + 16, f"{before:.1f} MB before, {most:.1f} MB with 40 slow readers"
    return f"40 that read nothing; another was answered after {took * 1000:.0f} ms; {before:.1f} MB before, {most:.1f} MB with them; all read to the end later"


async def leavers():
    """clients that vanish"""
    many = 60 if SHORT else 400
    before, dice = server.descriptors(), random.Random(1)

    async def one(i):
        client = await Client(server.port).open()
        body = endless(NAMES[i % 3]) if i % 2 else chat(NAMES[i % 3], QUESTIONS[3], 480, ignore_eos=True)
        data = request(CHAT, body)
        await client.send(data if i % 5 else data[: len(data) // 2])
        await asyncio.sleep(dice.random() * 0.3)
        client.close(rudely=i % 3 == 0)

    for first in range(0, many, 40):
        await asyncio.gather(*(one(i) for i in range(first, first + 40)))
    begun = time.monotonic()
    await server.quiet()
    took = time.monotonic() - begun
    await asyncio.sleep(0.2)
    assert server.descriptors() <= before, (before, server.descriptors())
    return f"{many} left in the middle, a third with a reset; nothing was held {took * 1000:.0f} ms later"


async def half_open():
    """half-open connections"""
    before = server.descriptors()
    halves = [await Client(server.port).open() for _ in range(400)]
    for i, client in enumerate(halves):
        if i % 4:
            await client.send(request(CHAT, chat("alpha"))[: 20 if i % 4 == 1 else 60])
    begun = time.monotonic()
    client = Client(server.port)
    for _ in range(20):
        text(await client.ask(CHAT, chat("alpha", tokens=4)))
        assert (await server.get("/health")).status == 200
    took = (time.monotonic() - begun) / 20
    client.close()
    if not SHORT:
        # They are told to go after a minute.
        end = time.monotonic() + 75
        while server.descriptors() > before:
            assert time.monotonic() < end, (before, server.descriptors())
            await asyncio.sleep(1)
    for client in halves:
        client.close()
    closed = "" if SHORT else f"; all were closed after {time.monotonic() - begun:.0f} s"
    return f"400 of them; others waited {took * 1000:.0f} ms{closed}"


async def killed():
    """kill -9, and a new start"""
    global server
    times = []
    for _ in range(3):
        server.process.kill()
        server.process.wait()
        server = Server()
        assert (await server.get("/readyz")).status == 200
        times.append(time.monotonic() - server.begun)
    assert min(times) < 1, times
    return f"ready after {', '.join(f'{t * 1000:.0f} ms' for t in times)}"


server = Server()
for work in (crowd, leak, overload, readers, leavers, half_open, killed):
    part(work)
server.process.send_signal(signal.SIGTERM)
if server.process.wait(40) != 0:
    sys.exit("the server did not end well")
sys.exit(1 if failed else 0)
