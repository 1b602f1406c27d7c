"""The official SDKs as clients of a router: one line for each thing that holds, exit status 1 at the first that does not.

usage: check.py BASE_URL     environment: ULTRASPEED_API_KEY
"""
import datetime
import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid
from typing import Annotated, Literal, Optional

import anthropic
import openai
import pydantic

base_url = sys.argv[1]
key = os.environ["ULTRASPEED_API_KEY"]
MODEL = "tiny-mimo"
QUESTION = [{"role": "user", "content": "Write a function that adds two numbers."}]
SAME = {"temperature": 0.8, "max_tokens": 40}
EXTRA = {"ignore_eos": True, "seed": 7}
# Arguments of a tool that is held to it end within these tokens.
BOUNDED = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "op": {"enum": ["add", "subtract"]},
           "why": {"type": "string", "maxLength": 20}}, "required": ["a", "op", "why"], "additionalProperties": False}
SCHEMA = {"type": "object", "properties": {"a": {"type": "number"}, "why": {"type": "string"}}, "required": ["a"], "additionalProperties": False}


class Person(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(max_length=20)]
    role: Literal["author", "editor"]
    age: Annotated[Optional[int], pydantic.Field(ge=0, le=150)]
    born: datetime.date
    seen: datetime.datetime
    id: uuid.UUID
    score: Annotated[float, pydantic.Field(ge=0, lt=1)]
    handle: Annotated[str, pydantic.Field(pattern=r"^@[a-z]{2,10}(_[0-9]+)?$", max_length=15)]


def check(what, holds):
    print("ok  " if holds else "FAIL", what, flush=True)
    if not holds:
        sys.exit(1)


def is_bounded(arguments):
    return (list(arguments) == ["a", "op", "why"] and arguments["a"] in range(100) and arguments["op"] in ("add", "subtract")
            and len(arguments["why"]) <= 20)


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    return None


def await_model():
    for _ in range(100):
        try:
            urllib.request.urlopen(base_url + "/readyz")
            return
        except urllib.error.HTTPError:  # 503: the worker is not known yet
            time.sleep(0.1)
    check("the router is ready", False)


def check_openai():
    client = openai.OpenAI(base_url=base_url + "/v1", api_key=key, max_retries=0)
    check(f"openai {openai.__version__}: models.list", [m.id for m in client.models.list()] == [MODEL])
    check("models.retrieve", client.models.retrieve(MODEL).id == MODEL)

    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, extra_body=EXTRA, **SAME)
    text = whole.choices[0].message.content
    check("chat.completions.create", bool(text) and whole.choices[0].finish_reason == "length")
    check("its usage", whole.usage.completion_tokens == 40 and whole.usage.total_tokens == whole.usage.prompt_tokens + 40)
    check("its tier and fingerprint", whole.service_tier == "default" and whole.system_fingerprint.startswith("fp_"))

    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}, extra_body=EXTRA, **SAME)
    chunks = list(stream)
    joined = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    check("the same text streamed", joined == text)
    check("usage in the last chunk", not chunks[-1].choices and chunks[-1].usage.completion_tokens == 40)

    with client.chat.completions.stream(model=MODEL, messages=QUESTION, extra_body=EXTRA, **SAME) as helper:
        # An answer that max_tokens cut is an exception of the helper's, which holds what it put together.
        error = refused(openai.LengthFinishReasonError, helper.get_final_completion)
        check("the stream helper's text", error is not None and error.completion.choices[0].message.content == text)

    logprobs = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=5, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    check("logprobs", len(logprobs) == 5 and len(logprobs[0].top_logprobs) == 2)

    fast = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=5, service_tier="priority")
    check("service_tier priority", fast.service_tier == "priority")

    completion = client.completions.create(model=MODEL, prompt="def main():", max_tokens=10, extra_body=EXTRA)
    streamed = client.completions.create(model=MODEL, prompt="def main():", max_tokens=10, stream=True, extra_body=EXTRA)
    check("completions, streamed and not", completion.choices[0].text == "".join(c.choices[0].text for c in streamed if c.choices))

    # The bundled model was never told of tools, so it is made to call one; what it fills in is its affair.
    tools = [{"type": "function", "function": {"name": "add", "strict": True, "parameters": SCHEMA}}]
    forced = {"type": "function", "function": {"name": "add"}}
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, tools=tools, tool_choice=forced, extra_body=EXTRA, **SAME)
    call = whole.choices[0].message.tool_calls[0]
    check("tools: the forced function is called", call.function.name == "add" and call.id.startswith("call_"))
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=tools, tool_choice=forced, stream=True, extra_body=EXTRA, **SAME)
    deltas = [d for c in stream if c.choices for d in c.choices[0].delta.tool_calls or []]
    check("the same call streamed", deltas[0].function.name == "add" and "".join(d.function.arguments for d in deltas) == call.function.arguments)
    held = [{"type": "function", "function": {"name": "count", "strict": True, "parameters": BOUNDED}}]
    once = client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=held, tool_choice="required", parallel_tool_calls=False, max_tokens=300)
    check("strict: its arguments are valid", is_bounded(json.loads(once.choices[0].message.tool_calls[0].function.arguments)))
    check("strict: finish_reason", once.choices[0].finish_reason == "tool_calls")
    parsed = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, tools=[openai.pydantic_function_tool(Person)], tool_choice="required", parallel_tool_calls=False, max_tokens=2000)
    check("strict: a pydantic tool", isinstance(parsed.choices[0].message.tool_calls[0].function.parsed_arguments, Person))
    error = refused(openai.BadRequestError, lambda: client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=[{"type": "function", "function": {
            "name": "f", "strict": True, "parameters": {"type": "object", "properties": {"x": {"type": "integer", "not": {}}}}}}]))
    check("strict: refused by its place", error is not None and error.param == "tools[0].function.parameters.properties.x")
    conversation = QUESTION + [
        {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "tool_call_id": call.id, "content": "3"}]
    answer = client.chat.completions.create(model=MODEL, messages=conversation, tools=tools, tool_choice="none", **SAME)
    check("its result goes back", bool(answer.choices[0].message.content))
    error = refused(openai.BadRequestError, lambda: client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=[{"type": "function", "function": {"name": "a b"}}]))
    check("a bad tool is a BadRequestError with param", error is not None and error.param == "tools[0].function.name")
    check_responses(client, text)

    parsed = client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Person, max_tokens=2000).choices[0]
    check("chat.completions.parse", parsed.finish_reason == "stop" and isinstance(parsed.message.parsed, Person))
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, response_format=Person, max_tokens=2000) as helper:
        check("the same streamed", isinstance(helper.get_final_completion().choices[0].message.parsed, Person))
    free = client.chat.completions.create(model=MODEL, messages=QUESTION, response_format={"type": "json_object"}, max_tokens=30)
    check("json_object", free.choices[0].message.content.startswith("{"))
    error = refused(openai.BadRequestError, lambda: client.chat.completions.create(
        model=MODEL, messages=QUESTION, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}))
    check("a schema that cannot be held to is refused by its place", error is not None and error.param == "response_format.json_schema.schema")
    error = refused(openai.NotFoundError, lambda: client.chat.completions.create(model="other", messages=QUESTION))
    check("an unknown model is a NotFoundError", error is not None and error.code == "model_not_found")
    stranger = openai.OpenAI(base_url=base_url + "/v1", api_key="us-wrong", max_retries=0)
    check("a wrong key is an AuthenticationError", refused(openai.AuthenticationError, stranger.models.list) is not None)
    return text


def check_responses(client, chat_text):
    same = {"temperature": SAME["temperature"], "max_output_tokens": SAME["max_tokens"], "extra_body": EXTRA}
    whole = client.responses.create(model=MODEL, input=QUESTION, **same)
    check("responses.create", whole.output_text == chat_text and whole.status == "incomplete")
    check("its usage", whole.usage.output_tokens == 40 and whole.incomplete_details.reason == "max_output_tokens")
    with client.responses.stream(model=MODEL, input=QUESTION, **same) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    check("the same text streamed", text == chat_text)
    tools = [{"type": "function", "name": "add", "strict": True, "parameters": SCHEMA}]
    forced = {"type": "function", "name": "add"}
    whole = client.responses.create(model=MODEL, input=QUESTION, tools=tools, tool_choice=forced, **same)
    call = whole.output[0]
    check("a forced function_call", call.type == "function_call" and call.name == "add")
    once = client.responses.create(
        model=MODEL, input=QUESTION, tools=[{"type": "function", "name": "count", "strict": True, "parameters": BOUNDED}], tool_choice="required",
        parallel_tool_calls=False, max_output_tokens=300)
    check("strict: its arguments are valid", is_bounded(json.loads(once.output[0].arguments)))
    # As an agent does: the answer's own items, then the result.
    items = QUESTION + [{**call.model_dump(exclude_none=True), "arguments": '{"a": 1}'}, {"type": "function_call_output", "call_id": call.call_id, "output": "3"}]
    answer = client.responses.create(model=MODEL, input=items, tools=tools, tool_choice="none", max_output_tokens=8, extra_body=EXTRA)
    check("its result goes back", bool(answer.output_text))
    parsed = client.responses.parse(model=MODEL, input=QUESTION, text_format=Person, max_output_tokens=2000)
    check("responses.parse", parsed.status == "completed" and isinstance(parsed.output_parsed, Person))
    error = refused(openai.BadRequestError, lambda: client.responses.create(model=MODEL, input="x", previous_response_id="resp_1"))
    check("what is not stored is refused by name", error is not None and error.param == "previous_response_id")


def check_anthropic(openai_text):
    # Newer versions of this SDK take no temperature of their own.
    same = {"max_tokens": SAME["max_tokens"], "extra_body": {"temperature": SAME["temperature"], **EXTRA}}
    client = anthropic.Anthropic(base_url=base_url, api_key=key, max_retries=0)
    whole = client.messages.create(model=MODEL, messages=QUESTION, **same)
    check(f"anthropic {anthropic.__version__}: messages.create", whole.content[0].text == openai_text)
    check("its stop_reason and usage", whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 40)

    events = list(client.messages.create(model=MODEL, messages=QUESTION, stream=True, **same))
    check("message_start first, message_stop last", (events[0].type, events[-1].type) == ("message_start", "message_stop"))
    with client.messages.stream(model=MODEL, messages=QUESTION, **same) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    check("the same text streamed", text == openai_text and final.content[0].text == openai_text)
    check("the final message's usage", final.usage.output_tokens == 40 and final.stop_reason == "max_tokens")

    tools = [{"name": "add", "description": "Adds.", "input_schema": SCHEMA}]
    forced = {"type": "tool", "name": "add"}
    whole = client.messages.create(model=MODEL, messages=QUESTION, tools=tools, tool_choice=forced, **same)
    check("tools: a tool_use block", whole.content[0].type == "tool_use" and whole.content[0].name == "add")
    with client.messages.stream(model=MODEL, messages=QUESTION, tools=tools, tool_choice=forced, **same) as stream:
        final = stream.get_final_message()
    check("the same streamed", final.content[0].type == "tool_use" and final.content[0].id.startswith("call_"))
    once = client.messages.create(
        model=MODEL, messages=QUESTION, max_tokens=300, tools=[{"name": "count", "strict": True, "input_schema": BOUNDED}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True})
    check("strict: its input is valid", once.stop_reason == "tool_use" and is_bounded(once.content[0].input))
    conversation = QUESTION + [
        {"role": "assistant", "content": [{"type": "tool_use", "id": final.content[0].id, "name": "add", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": final.content[0].id, "content": "3"}]}]
    counted = client.messages.count_tokens(model=MODEL, messages=conversation, tools=tools)
    answer = client.messages.create(model=MODEL, messages=conversation, tools=tools, max_tokens=5)
    read = answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    check("its result goes back, and count_tokens counted it", counted.input_tokens == read)

    person = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"], "additionalProperties": False}
    held = client.messages.create(
        model=MODEL, messages=QUESTION, max_tokens=200, extra_body={"output_config": {"format": {"type": "json_schema", "schema": person}}})
    check("output_config.format", held.stop_reason == "end_turn" and list(json.loads(held.content[0].text)) == ["name"])

    stop = openai_text[10:14]
    stopped = client.messages.create(model=MODEL, messages=QUESTION, stop_sequences=[stop], **same)
    check("stop_sequences", stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == stop)
    check("end before the match", stopped.content[0].text == openai_text[:openai_text.index(stop)])
    brief = client.messages.create(model=MODEL, system="Be brief.", messages=QUESTION, max_tokens=5)
    check("system", brief.usage.input_tokens != whole.usage.input_tokens)

    error = refused(anthropic.BadRequestError, lambda: client.messages.create(
        model=MODEL, messages=QUESTION, max_tokens=5, extra_body={"temperature": 3}))
    check("a bad temperature is a BadRequestError", error is not None and error.body["error"]["type"] == "invalid_request_error")
    check("with the request's id", error.request_id is not None and error.body["request_id"] == error.request_id)
    stranger = anthropic.Anthropic(base_url=base_url, api_key="us-wrong", max_retries=0)
    check("a wrong key is an AuthenticationError", refused(anthropic.AuthenticationError, lambda: stranger.messages.create(
        model=MODEL, messages=QUESTION, max_tokens=5)) is not None)


await_model()
check_anthropic(check_openai())
