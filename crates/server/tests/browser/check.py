"""Uses the page in a real browser, as a person would: with a mouse, with a keyboard alone, on a phone.

    pip install playwright axe-playwright-python
    python check.py target/release/nexaquant target/browser

Starts the program with three models under 10 MB, prints a line for each check, keeps pictures in the folder, and ends
with code 1 if a check fails. The browser is the system's: /usr/bin/chromium, or what NEXAQUANT_CHROMIUM says.
"""

import os
import pathlib
import re
import subprocess
import sys
import time

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

PROGRAM = sys.argv[1]
PICTURES = pathlib.Path(sys.argv[2])
CHROMIUM = os.environ.get("NEXAQUANT_CHROMIUM", "/usr/bin/chromium")
LONG = 30_000
failed = 0

# Runs in the page before anything else: notes every state that each cell takes, and every length that an answer has on its way.
WATCH = """
window.seen = {states: {}, lengths: []};
document.addEventListener("DOMContentLoaded", () => new MutationObserver((all) => {
  for (const {target, type} of all) {
    const cell = type === "attributes" && target.closest?.(".cells") && target;
    if (cell) {
      const model = cell.closest("[data-model]").dataset.model;
      (seen.states[model] ??= {})[cell.dataset.state] = true;
    }
    const turns = document.querySelectorAll(".turn.assistant");
    const length = turns.length ? turns[turns.length - 1].innerText.length : 0;
    if (seen.lengths.at(-1) !== length) seen.lengths.push(length);
    if (window.stopAt && length > window.stopAt) { window.stopAt = 0; document.getElementById("stop").click(); }
  }
}).observe(document, {subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ["data-state"]}));
"""


def check(name):
    def run(work):
        global failed
        try:
            work()
            print("ok    ", name, flush=True)
        except Exception as error:  # every failure is a line of the report
            failed += 1
            print("FAILED", name, str(error)[:600], flush=True)
            page.screenshot(path=PICTURES / f"failed-{failed}.png")

    return run


def start():
    server = subprocess.Popen([PROGRAM, "serve", "alpha", "beta", "gamma", "--budget", "10MB", "--port", "0"],
                              stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        if found := re.search(r" at (http://\S+)", line):
            # Its log goes on; nobody reads it, so it must not fill the pipe.
            subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
            return server, found[1]
    sys.exit("the server did not start")


def opened(browser, **more):
    """A page, and what went wrong on it."""
    made = browser.new_context(**more).new_page()
    made.set_default_timeout(LONG)
    wrong = []
    bad = lambda said: said.type in ("error", "warning") and "Failed to load resource" not in said.text
    made.on("console", lambda said: wrong.append(said.text) if bad(said) else None)
    # Some requests are meant to be refused.
    refused = ("/v1/chat/completions", "/v1/m3/budget")
    made.on("response", lambda r: wrong.append(f"{r.status} {r.url}") if r.status >= 400 and not r.url.endswith(refused) else None)
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.add_init_script(WATCH)
    made.goto(URL)
    expect(made.locator("#state")).to_have_text("live")
    return made, wrong


def picture(name, of=None):
    (of or page).screenshot(path=PICTURES / f"{name}.png")


def idle(of=None):
    expect((of or page).locator("#stop")).to_be_hidden(timeout=LONG)


def ask(text, model=None, of=None):
    on = of or page
    if model:
        on.select_option("#model", model)
    on.fill("#question", text)
    on.press("#question", "Enter")
    idle(on)


def answers(of=None):
    return (of or page).locator(".turn.assistant")


def cells(model, of=None):
    return (of or page).eval_on_selector_all(f'[data-model="{model}"] .cells .u', "all => all.map(c => c.dataset.state).join('')")


def until(what, why):
    end = time.monotonic() + LONG / 1000
    while not what():
        if time.monotonic() > end:
            raise AssertionError(why)
        page.wait_for_timeout(30)


def accessible(of=None):
    found = Axe().run(of or page).response["violations"]
    bad = [f"{one['id']}: {node['html'][:120]}" for one in found if one["impact"] in ("serious", "critical") for node in one["nodes"]]
    assert not bad, bad


def fits(of):
    wide = of.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1], f"{wide[0]} pixels wide, {wide[1]} are there"


PICTURES.mkdir(parents=True, exist_ok=True)
server, URL = start()
with sync_playwright() as play:
    browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    page, wrong = opened(browser, viewport={"width": 1360, "height": 900}, color_scheme="light")

    @check("the page comes with its models, under its policy")
    def _():
        policy = page.request.get(URL).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy, policy
        assert page.locator("#model option").all_inner_texts() == ["alpha", "beta", "gamma"]
        assert page.locator("[data-model]").count() == 3
        assert set(cells("alpha")) == {"c"}, cells("alpha")
        picture("1-empty")

    @check("an answer comes word by word")
    def _():
        page.evaluate("seen.lengths = []")
        ask("Tell me a story about a little fox.", "gamma")
        assert len(answers().last.inner_text()) > 20
        assert len(page.evaluate("seen.lengths")) > 3, page.evaluate("seen.lengths")
        expect(answers().last.locator(".cost")).to_contain_text("tokens")
        picture("2-answer")

    @check("cells change while two models take turns")
    def _():
        ask("What is your name?", "alpha")
        until(lambda: set(cells("alpha")) == {"r"}, "alpha is in memory")
        page.evaluate("seen.states = {}")
        for model in ("beta", "alpha", "beta", "alpha"):
            ask("What is your name?", model)
        until(lambda: set(cells("alpha")) == {"r"}, "alpha is in memory again")
        picture("3-turns")
        seen = page.evaluate("seen.states")
        for model in ("alpha", "beta"):
            # Each came and had to make room for the other.
            assert "r" in seen[model] and set(seen[model]) & {"c", "h"}, seen
        assert page.locator("#switches tr").count() >= 5
        assert page.locator("#rate polyline").get_attribute("points").count(",") > 1

    @check("a pinned model stays")
    def _():
        page.get_by_role("button", name="Pin alpha", exact=True).click()
        until(lambda: set(cells("alpha")) == {"p"}, "alpha is pinned")
        ask("What is your name?", "beta")
        assert set(cells("alpha")) <= {"p", "u"}, cells("alpha")
        picture("4-pinned")
        page.get_by_role("button", name="Unpin alpha", exact=True).click()
        until(lambda: "p" not in cells("alpha"), "alpha is not pinned")

    @check("models are unloaded and loaded")
    def _():
        page.get_by_role("button", name="Unload alpha", exact=True).click()
        until(lambda: set(cells("alpha")) == {"c"}, "alpha is gone")
        page.get_by_role("button", name="Load alpha", exact=True).click()
        until(lambda: set(cells("alpha")) == {"r"}, "alpha is back")

    @check("the budget is changed, and one that is too small refused")
    def _():
        for budget in ("20", "10"):
            page.fill("#budget", budget)
            page.press("#budget", "Enter")
            expect(page.locator("#meter-text")).to_contain_text(f"of {budget}.00 MB")
        page.fill("#budget", "0.2")
        page.press("#budget", "Enter")
        expect(page.locator("#memory-note")).to_contain_text("budget")
        picture("5-refused")
        page.fill("#budget", "10")
        page.press("#budget", "Enter")
        expect(page.locator("#memory-note")).to_be_empty()

    @check("an answer is stopped, by mouse and by keyboard, and asked for again")
    def _():
        page.evaluate("window.stopAt = 12")
        ask("Tell me a long story about the sea.", "gamma")
        expect(answers().last.locator(".cost")).to_have_text("stopped")
        n = page.locator(".turn").count()
        page.get_by_role("button", name="Regenerate").click()
        idle()
        assert page.locator(".turn").count() == n
        expect(answers().last.locator(".cost")).to_contain_text("tokens")
        page.fill("#question", "Tell me a long story about the sea.")
        page.press("#question", "Enter")
        page.keyboard.press("Escape")
        idle()
        expect(answers().last.locator(".cost")).to_have_text("stopped")
        until(lambda: page.request.get(f"{URL}/health").json()["running"] == 0, "the server has stopped, too")

    @check("a conversation that outgrows the context goes on without its beginning")
    def _():
        for _ in range(2):
            ask("Tell me a long story about the sea.", "gamma")
        assert not page.locator(".turn .error").count()
        expect(answers().last.locator(".cost")).to_contain_text("left out")
        # An answer that had no room to end gets some when it is asked for again.
        for _ in range(8):
            with page.expect_request("**/v1/chat/completions") as sent:
                ask("Tell me a long story about the sea.", "gamma")
            if "no room for more" in answers().last.locator(".cost").inner_text():
                break
        else:
            raise AssertionError("nothing was cut off")
        with page.expect_request("**/v1/chat/completions") as again:
            page.get_by_role("button", name="Regenerate").click()
        idle()
        assert len(again.value.post_data_json["messages"]) < len(sent.value.post_data_json["messages"])

    @check("settings are sent")
    def _():
        # The long conversation may leave no room for five tokens.
        page.get_by_role("button", name="New chat").click()
        page.locator("#settings summary").click()
        page.fill("#system", "Be brief.")
        page.fill("#temperature", "0")
        page.fill("#max_tokens", "5")
        picture("6-settings")
        accessible()
        with page.expect_request("**/v1/chat/completions") as sent:
            ask("Hello.", "alpha")
        body = sent.value.post_data_json
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 5, "alpha"), body
        expect(answers().last.locator(".cost")).to_contain_text("5 tokens")
        expect(answers().last.locator(".cost")).to_contain_text("cut off: as long as was asked for")
        for field in ("#system", "#temperature", "#max_tokens"):
            page.fill(field, "")
        page.locator("#settings summary").click()
        page.get_by_role("button", name="Delete chat").click()

    @check("what a model says can look like anything and do nothing")
    def _():
        text = "# T\\n**b** `c` <img src=x onerror=alert(1)> [a](javascript:alert(1)) [l](https://example.org)\\n\\n```\\n<b>\\n```\\n- 1\\n- 2\\n\\n| a | b |\\n|---|---|\\n| 1 | 2 |"
        made = page.evaluate(f"""import("/page/markdown.js").then(m => {{
            const box = document.createElement("div");
            box.append(m.markdown("{text}"));
            return box.innerHTML;
        }})""")
        assert "<img" not in made and 'href="javascript' not in made, made
        for wanted in ("<strong>b</strong>", "<code>c</code>", 'href="https://example.org"', "<li>1</li>", "&lt;b&gt;", "<td>2</td>"):
            assert wanted in made, (wanted, made)

    @check("conversations are kept in the browser")
    def _():
        first = answers().first.inner_text()
        page.reload()
        expect(page.locator("#state")).to_have_text("live")
        assert answers().first.inner_text() == first
        page.get_by_role("button", name="New chat").click()
        assert page.locator(".turn").count() == 0
        ask("What is your name?", "alpha")
        page.locator("#history").select_option(index=1)
        assert answers().first.inner_text() == first
        page.get_by_role("button", name="Delete chat").click()
        assert "little fox" not in page.locator("#history").inner_text()

    @check("by keyboard alone")
    def _():
        page.reload()
        expect(page.locator("#state")).to_have_text("live")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "question"
        page.keyboard.type("Two\n".rstrip())
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("lines")
        assert page.input_value("#question") == "Two\nlines"
        page.keyboard.press("Enter")
        idle()
        assert page.evaluate("document.activeElement.id") == "question", "one can go on typing"
        # Once round: everything that can be used is reached, and can be left.
        page.evaluate("document.activeElement.blur()")
        wanted = page.evaluate("""[...document.querySelectorAll('a[href], button, input, select, textarea, summary')]
            .filter(e => !e.disabled && e.checkVisibility()).length""")
        reached = set()
        for _ in range(120):
            page.keyboard.press("Tab")
            at = page.evaluate("""(() => { const e = document.activeElement; if (e === document.body) return null;
                const all = [...document.querySelectorAll('a[href], button, input, select, textarea, summary')];
                if (![e, e.closest('.compose')].some(e => e && getComputedStyle(e).outlineStyle !== 'none')) return 'no ring: ' + e.outerHTML.slice(0, 80);
                return all.indexOf(e); })()""")
            assert not isinstance(at, str), at
            reached.add(at)
        reached -= {None, -1}
        assert len(reached) == wanted, f"{len(reached)} of {wanted} are reached"
        pin = page.get_by_role("button", name="Pin beta", exact=True)
        pin.focus()
        page.keyboard.press("Space")
        until(lambda: set(cells("beta")) == {"p"}, "beta is pinned")
        assert page.evaluate("document.activeElement.textContent") == "Unpin"
        page.keyboard.press("Space")
        until(lambda: "p" not in cells("beta"), "beta is not pinned")

    @check("dark and light, and nothing serious for axe in either")
    def _():
        back = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(back)
        accessible()
        page.get_by_role("button", name="Use dark colours").click()
        assert page.evaluate(back) != light
        page.wait_for_timeout(400)
        accessible()
        picture("7-dark")
        page.reload()
        expect(page.locator("#state")).to_have_text("live")
        assert page.evaluate(back) != light, "it is remembered"
        dark, said = opened(browser, color_scheme="dark")
        assert dark.evaluate(back) == page.evaluate(back) and not said, said
        dark.context.close()

    @check("on a phone")
    def _():
        small, said = opened(browser, viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True, has_touch=True)
        fits(small)
        ask("Tell me a story about a little fox.", "alpha", small)
        fits(small)
        picture("8-phone", small)
        accessible(small)
        little = small.evaluate("""[...document.querySelectorAll('button, select, input, summary')].filter(e => e.checkVisibility())
            .filter(e => { const r = e.getBoundingClientRect(); return r.width && (r.width < 24 || r.height < 24); }).map(e => e.outerHTML.slice(0, 80))""")
        assert not little, little
        small.locator("#memory").scroll_into_view_if_needed()
        small.evaluate("document.getElementById('memory').scrollIntoView()")
        small.wait_for_timeout(300)
        picture("9-phone-memory", small)
        small.set_viewport_size({"width": 320, "height": 640})
        fits(small)
        assert not said, said
        small.context.close()

    @check("nothing went wrong unseen")
    def _():
        assert not wrong, wrong

    @check("a server that goes and comes back")
    def _():
        global server
        port = URL.rsplit(":", 1)[1]
        server.kill()
        server.wait()
        until(lambda: page.locator("#state").inner_text() != "live", "it is noticed")
        begun = time.monotonic()
        server = subprocess.Popen([PROGRAM, "serve", "alpha", "beta", "--budget", "10MB", "--port", port], stderr=subprocess.DEVNULL)
        expect(page.locator("#state")).to_have_text("live", timeout=LONG)
        assert time.monotonic() - begun < 10
        expect(page.locator("[data-model]")).to_have_count(2)

    browser.close()
server.terminate()
server.wait()
sys.exit(1 if failed else 0)
