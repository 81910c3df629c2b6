"""Asks a running server with the Python clients of OpenAI, Anthropic and Ollama, as their users would.

    pip install openai anthropic ollama
    nexaquant serve alpha beta gamma --budget 10MB --port 8080
    python check.py http://127.0.0.1:8080

Prints a line for each check and ends with code 1 if one fails.
"""

import concurrent.futures
import json
import sys

import anthropic
import ollama
import openai

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
ASK = [{"role": "user", "content": "What is your name?"}]
GREEDY = {"model": "alpha", "messages": ASK, "temperature": 0, "max_tokens": 16}
COLD = {"temperature": 0}
failed = 0


def check(name):
    def run(work):
        global failed
        try:
            work()
            print("ok    ", name)
        except Exception as error:  # every failure is a line of the report
            failed += 1
            print("FAILED", name, repr(error))

    return run


def answer(**more):
    return client.chat.completions.create(**{**GREEDY, **more})


@check("models")
def _():
    assert "alpha" in [model.id for model in client.models.list()]
    assert client.models.retrieve("alpha").id == "alpha"


@check("chat, whole and streamed")
def _():
    whole = answer()
    text = whole.choices[0].message.content
    assert text and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(answer(stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


@check("several answers, seeds, stop, logprobs")
def _():
    two = answer(n=2, seed=3, temperature=1.0)
    again = answer(n=2, seed=3, temperature=1.0)
    assert [c.message.content for c in two.choices] == [c.message.content for c in again.choices]
    scored = answer(logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content
    assert len(scored) == 4 and all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in scored)


@check("json_schema")
def _():
    schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 1, "maximum": 99}},
              "required": ["age"], "additionalProperties": False}
    shape = {"type": "json_schema", "json_schema": {"name": "age", "schema": schema}}
    assert 1 <= json.loads(answer(response_format=shape, max_tokens=40).choices[0].message.content)["age"] <= 99


@check("tools")
def _():
    tool = {"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"], "additionalProperties": False}}}
    choice = answer(tools=[tool], tool_choice="required", max_tokens=60).choices[0]
    call = choice.message.tool_calls[0].function
    assert choice.finish_reason == "tool_calls" and json.loads(call.arguments) == {"city": "Rome"}


@check("errors")
def _():
    for more, kind in [({"model": "none"}, openai.NotFoundError), ({"temperature": -1}, openai.BadRequestError),
                       ({"messages": []}, openai.BadRequestError)]:
        try:
            answer(**more)
        except kind as error:
            assert error.body["message"]
        else:
            raise AssertionError(more)


@check("a stream that is left, and a timeout")
def _():
    stream = answer(model="gamma", max_tokens=300, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    try:
        answer(model="gamma", max_tokens=300, timeout=0.05, extra_body={"ignore_eos": True})
    except openai.APITimeoutError:
        pass
    assert answer(max_tokens=2).choices[0].message.content


@check("text completion")
def _():
    done = client.completions.create(model="beta", prompt="Once upon a time", temperature=0, max_tokens=8, echo=True)
    assert done.choices[0].text.startswith("Once upon a time")


@check("embeddings")
def _():
    done = client.embeddings.create(model="beta", input=["A fox.", "The sea."])
    assert len(done.data) == 2 and abs(sum(x * x for x in done.data[0].embedding) - 1) < 1e-4


@check("three models at once, greedy answers as alone")
def _():
    alone = {name: answer(model=name).choices[0].message.content for name in ("alpha", "beta", "gamma")}
    with concurrent.futures.ThreadPoolExecutor(12) as crowd:
        names = [("alpha", "beta", "gamma")[i % 3] for i in range(12)]
        texts = list(crowd.map(lambda name: answer(model=name).choices[0].message.content, names))
    assert texts == [alone[name] for name in names]


@check("anthropic")
def _():
    other = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
    message = other.messages.create(model="alpha", max_tokens=16, messages=ASK, extra_body=COLD)
    assert other.messages.count_tokens(model="alpha", messages=ASK).input_tokens == message.usage.input_tokens
    with other.messages.stream(model="alpha", max_tokens=16, messages=ASK, extra_body=COLD) as stream:
        assert "".join(stream.text_stream) == message.content[0].text != ""


@check("anthropic's tools, whole, streamed and answered")
def _():
    other = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"], "additionalProperties": False}
    more = {"model": "alpha", "max_tokens": 60, "extra_body": COLD, "tools": [{"name": "weather", "input_schema": schema}]}
    message = other.messages.create(messages=ASK, tool_choice={"type": "tool", "name": "weather"}, **more)
    call = message.content[0]
    assert (message.stop_reason, call.type, call.name, call.input) == ("tool_use", "tool_use", "weather", {"city": "Rome"})
    with other.messages.stream(messages=ASK, tool_choice={"type": "any"}, **more) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.content[0].input) == ("tool_use", {"city": "Rome"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "20 degrees"}
    talk = [*ASK, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
    assert other.messages.create(messages=talk, **more).content[0].type == "text"


@check("ollama")
def _():
    other = ollama.Client(host=URL)
    assert "alpha" in [model.model for model in other.list().models]
    options = {"temperature": 0, "num_predict": 16}
    text = other.chat(model="alpha", messages=ASK, options=options).message.content
    assert "".join(c.message.content for c in other.chat(model="alpha", messages=ASK, options=options, stream=True)) == text
    assert other.generate(model="alpha", prompt="Hello.", options=options).response
    assert "completion" in other.show("alpha").capabilities and "alpha" in [model.model for model in other.ps().models]


@check("ollama's tools")
def _():
    def weather(city: str) -> str:
        """Tells the weather.

        Args:
            city: where
        """
        return city

    call = {"type": "object", "properties": {"name": {"const": "weather"}, "arguments": {"type": "object", "properties": {"city": {"enum": ["Rome"]}},
            "required": ["city"], "additionalProperties": False}}, "required": ["name", "arguments"], "additionalProperties": False}
    said = ollama.Client(host=URL).chat(model="alpha", messages=ASK, tools=[weather], format=call, options={"temperature": 0}).message
    assert weather(**said.tool_calls[0].function.arguments) == "Rome"
    talk = [*ASK, said, {"role": "tool", "tool_name": "weather", "content": "20 degrees"}]
    assert ollama.Client(host=URL).chat(model="alpha", messages=talk, tools=[weather], options={"num_predict": 8}).message is not None


sys.exit(1 if failed else 0)
