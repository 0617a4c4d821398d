"""Ways in which files are damaged, lie or attack. Each takes the content of a good file, and a source of choices."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

DIGITS = "9" * 5000
DEPTH = 20_000

# What stands in the place of a value of a JSON or YAML file, as it is written there.
VALUES = (
    *("null", "true", "false", '""', '"x"', '"../../etc/passwd"', '"/dev/zero"', '"\\u0000"', '"\\ud800"', '"a\\nb"'),
    *("-1", "0", "1", "2", "3", "0.5", "1e-400", "1e400", "NaN", "Infinity", "-Infinity", "1000000000000", DIGITS),
    *("[]", "{}", "[[]]", '[{"a": null}]', '{"a": [1]}', '["x", "x"]', "[" * DEPTH + "]" * DEPTH),
)
CODE = (  # of others, in the places of `auto_map`
    *("elsewhere/repo--evil.Evil", "evil.Evil", "os.system", "../evil.Evil", "modeling_visualbert.os", "Evil", ""),
)


def mutate_text(content: bytes, random: Random) -> bytes:
    """Damage of any file of text: cut off, in another encoding, with bytes that no text has."""
    place = random.randrange(len(content) + 1)
    return random.choice(
        [
            lambda: content[:place],
            lambda: b"",
            lambda: content[:place] + b"\x00" * random.choice([1, 100]) + content[place:],
            lambda: content[:place] + random.choice([b"\xff", b"\xe4", b"\xed\xa0\x80", b"\x1b[31m"]) + content[place:],
            lambda: content.decode().encode("utf-16"),
            lambda: content[:place] + content[place + 1 :],
            lambda: content + content,
            lambda: content[:place] + DIGITS.encode() + content[place:],
            lambda: b"[" * DEPTH + content,
            lambda: b'{"a":' * DEPTH,
            lambda: b"PK\x03\x04" + content,
            lambda: b"\x80\x04\x95" + content,
        ]
    )()


def mutate_json(content: bytes, random: Random) -> bytes:
    """Another value, a missing, a new or a repeated key somewhere in a JSON document, or damage of its text."""
    if random.randrange(5) == 0:
        return mutate_text(content, random)
    document = json.loads(content)
    parent, key = _choose_place(document, random)
    kind = random.randrange(6)
    if kind == 0 and isinstance(parent, dict):
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[key + "_"] = parent.pop(key)
    elif kind == 2:
        parent[key] = random.choice([[parent[key]], {"a": parent[key]}, str(parent[key]), [parent[key]] * 1000])
    else:
        parent[key] = _MARK
    text = json.dumps(document, indent=1)
    return text.replace(f'"{_MARK}"', random.choice(VALUES)).encode()


_MARK = "another value"


def _choose_place(document: Any, random: Random) -> tuple[Any, Any]:
    """A container in a document and a key or index in it; long lists are not chosen more often than short ones."""
    parent, key = document, random.choice(_keys(document))
    while _keys(parent[key]) and random.randrange(4):
        parent = parent[key]
        key = random.choice(_keys(parent))
    return parent, key


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


def repeat_key(content: bytes, random: Random) -> bytes:
    """A key twice in the outermost object; readers take the last."""
    document = json.loads(content)
    key = random.choice(list(document))
    return f"{json.dumps(document)[:-1]}, {json.dumps(key)}: {random.choice(VALUES)}}}".encode()


def refer_elsewhere(content: bytes, random: Random) -> bytes:
    """A configuration whose code lies elsewhere."""
    document = json.loads(content)
    code = random.choice(CODE)
    document["auto_map"] = random.choice(
        [
            code,
            [code],
            {key: code for key in document.get("auto_map", {"AutoConfig": ""})},
            {"AutoTokenizer": [code, None]},
        ]
    )
    document[random.choice(["model_type", "processor_class", "tokenizer_class", "image_processor_type", "x"])] = code
    return json.dumps(document).encode()


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_safetensors(header: dict[str, Any] | str | bytes, data: bytes, length: int | None = None) -> bytes:
    """The bytes of a safetensors file, whatever its header says."""
    text = (
        json.dumps(header).encode()
        if isinstance(header, dict)
        else header.encode()
        if isinstance(header, str)
        else header
    )
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def mutate_safetensors(content: bytes, random: Random) -> bytes:
    """A header that lies about one tensor or about itself, or damaged data."""
    header, data = split_safetensors(content)
    name = random.choice([key for key in header if key != "__metadata__"])
    tensor = dict(header[name])
    start, end = tensor["data_offsets"]
    text = json.dumps(header)
    size = random.choice([0, 1, -1, 1 << 40, 1 << 63, 1 << 64, 10**30])
    lies: list[Callable[[], bytes]] = [
        lambda: join_safetensors({**header, name: {**tensor, "shape": [size]}}, data),
        lambda: join_safetensors({**header, name: {**tensor, "shape": [size, *tensor["shape"]]}}, data),
        lambda: join_safetensors({**header, name: {**tensor, "shape": [*tensor["shape"], 1]}}, data),
        lambda: join_safetensors({**header, name: {**tensor, "shape": tensor["shape"][::-1]}}, data),
        lambda: join_safetensors({**header, name: {**tensor, "data_offsets": [start, size]}}, data),
        lambda: join_safetensors({**header, name: {**tensor, "data_offsets": [size, size]}}, data),
        lambda: join_safetensors({**header, name: {**tensor, "data_offsets": [0, end - start]}}, data),
        lambda: join_safetensors({**header, name: {**tensor, "data_offsets": [end, start]}}, data),
        lambda: join_safetensors(
            {**header, name: {**tensor, "dtype": random.choice(["I8", "F64", "F16", "x", None, "C64"])}}, data
        ),
        lambda: join_safetensors({key: value for key, value in header.items() if key != name}, data),
        lambda: join_safetensors({**header, name + "_2": tensor}, data),
        lambda: join_safetensors(
            {**header, "zeros": {"dtype": "F32", "shape": [0, size], "data_offsets": [0, 0]}}, data
        ),
        lambda: join_safetensors(text[:-1] + f", {json.dumps(name)}: {json.dumps(tensor)}}}", data),
        lambda: join_safetensors(
            {**header, "__metadata__": random.choice([None, 3, {"a": 1}, {"format": "x"}, {}])}, data
        ),
        lambda: join_safetensors(mutate_json(text.encode(), random), data),
        lambda: join_safetensors(
            text, data, length=random.choice([0, 1, len(text) - 1, len(text) + 1, 10**12, (1 << 64) - 1])
        ),
        lambda: join_safetensors(text + " " * random.choice([8, 99_000_000]), data),
        lambda: join_safetensors(text, data[: random.randrange(len(data))]),
        lambda: join_safetensors(text, data + b"\0" * 8),
        lambda: join_safetensors(text, data[:start] + b"\xff" * (end - start) + data[end:]),
        lambda: content[: random.randrange(len(content))],
        lambda: b"PK\x03\x04" + content,
        lambda: b"",
    ]
    return random.choice(lies)()
