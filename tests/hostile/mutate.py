"""Mutations that keep a file's structure, for the fuzzers: mere bytes rarely get past a parser."""

import json
import random

# Out of range, absurd, or just inside.
INTEGERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    16,
    255,
    2**15,
    2**31 - 1,
    -(2**31),
    2**32,
    2**53,
    2**63 - 1,
    -(2**63),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 3.4e38, float("inf"), float("nan"))
TEXTS = ("", "x", "y", "..", "../x", "/", "\0", "a" * 300, "é", "main", "float32", "int4")
_DEEPER = 0.85


def mutate_message(message, choice: random.Random, texts=TEXTS):
    """Change one field of a protobuf message, or of a message in it, in place."""
    inner = [
        each
        for field, value in message.ListFields()
        if field.type == field.TYPE_MESSAGE
        for each in (value if field.is_repeated else [value])
    ]
    if inner and choice.random() < _DEEPER:
        mutate_message(choice.choice(inner), choice, texts)
        return
    field = choice.choice(message.DESCRIPTOR.fields)
    value = getattr(message, field.name)
    if choice.random() < 0.15:
        message.ClearField(field.name)
    elif field.type == field.TYPE_MESSAGE:
        _add_message(value, field, choice)
    elif not field.is_repeated:
        setattr(message, field.name, _scalar(field, choice, texts))
    elif len(value) and choice.random() < 0.3:
        del value[choice.randrange(len(value))]
    elif len(value) and choice.random() < 0.6:
        value[choice.randrange(len(value))] = _scalar(field, choice, texts)
    else:
        value.append(_scalar(field, choice, texts))


def _add_message(value, field, choice):
    """A copy of another message of the list, or an empty one."""
    if not field.is_repeated:
        value.SetInParent()
    elif len(value):
        copied = choice.choice(value)
        value.add().CopyFrom(copied)
    else:
        value.add()


def _scalar(field, choice, texts):
    kind = field.cpp_type
    if field.type == field.TYPE_BYTES:
        return choice.choice(texts).encode()
    if kind == field.CPPTYPE_STRING:
        return choice.choice(texts)
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return choice.choice(FLOATS)
    if kind == field.CPPTYPE_BOOL:
        return choice.random() < 0.5
    if kind == field.CPPTYPE_ENUM:
        return choice.choice(field.enum_type.values).number
    bits = 32 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    signed = kind in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return choice.choice([each for each in INTEGERS if low <= each <= high])


def mutate_json(text: str, choice: random.Random) -> str:
    """Change one value in a JSON document, which is an object."""
    document = json.loads(text)
    holder, place = {"": document}, ""
    while isinstance(holder[place], (dict, list)) and holder[place] and choice.random() < 0.9:
        holder = holder[place]
        place = choice.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    action = choice.random()
    if action < 0.2 and place != "":
        del holder[place]
    elif action < 0.35 and isinstance(holder, list):
        holder.append(holder[place])
    else:
        values = (*INTEGERS, *FLOATS, *TEXTS, None, True, [], {}, [[]], [0] * 40)
        holder[place] = choice.choice(values)
    return json.dumps(document)
