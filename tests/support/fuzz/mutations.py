"""What a stranger may write into a file: plain data with values of other kinds in odd places, and bytes changed."""
from __future__ import annotations

import copy
import math
from collections.abc import Iterator, MutableMapping, MutableSequence
from random import Random
from typing import Any

import torch

NAMES = ('../../secret/a.png', '../../../secret', '/etc/passwd', 'http://localhost:1/a.png', 'a\0b', '\ud800', '', '.',
         '..', 'a' * 5000, '-1', 'nan', '\n', '\x1b[31m', '~', '$HOME', '%s{0}', 'con', '日本')
NUMBERS = (0, -1, 1, 2**31, 2**63, 10**30, -2**70, 10**400, 0.5, -0.0, 1e30, 1e308, math.nan, math.inf, -math.inf, True)


def nested(depth: int) -> list:
    """Lists in each other."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def doubled(depth: int) -> list:
    """A list that is small in memory and endless when it is written out."""
    value: list = [0]
    for _ in range(depth):
        value = [value, value]
    return value


def holds_itself() -> list:
    """A list in itself."""
    value: list = [0]
    value.append(value)
    return value


def odd_value(rng: Random, secret: str, plain: bool) -> Any:
    """A value that belongs nowhere.

    Args:
        rng: Draws it.
        secret: A path outside the folder, that must not be touched.
        plain: Only what JSON can hold.
    """
    kinds = [lambda: rng.choice(NUMBERS), lambda: rng.choice(NAMES), lambda: secret, lambda: None, list, dict,
             lambda: nested(rng.choice((3, 60, 500))), lambda: {'a': {'b': [None]}}, lambda: [secret] * 3,
             lambda: rng.choice((True, False)), lambda: [0] * rng.choice((1, 2, 1000))]
    if not plain:
        kinds += [lambda: doubled(60), holds_itself, lambda: torch.full((3, ), math.nan), lambda: torch.zeros(0),
                  lambda: torch.zeros(1).expand(2**40), lambda: torch.zeros(2, 2).to_sparse(), lambda: b'\xff' * 9,
                  lambda: torch.zeros(1, device='meta'), lambda: {1, 2}, lambda: {None: 1, 2: 3, (1, ): 2}]
    return rng.choice(kinds)()


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a value with each of its keys; one that is there many times, or in itself, once."""
    seen, waiting = set(), [value]
    while waiting:
        holder = waiting.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        if isinstance(holder, MutableMapping):
            keys = list(holder)
        elif isinstance(holder, MutableSequence) and not isinstance(holder, bytearray):
            keys = list(range(min(len(holder), 20)))
        else:
            continue
        for key in keys:
            yield holder, key
            waiting.append(holder[key])


def mutated(rng: Random, content: Any, secret: str, plain: bool = True) -> Any:
    """A copy of plain data with one to three values changed, taken away, added or put in another's place.

    Containers are drawn first, then one of their entries: what a file holds once is hit as often as what it holds
    a thousand times.
    """
    value = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        by_holder: dict[int, list[tuple[Any, Any]]] = {}
        for holder, key in places(value):
            by_holder.setdefault(id(holder), []).append((holder, key))
        if not by_holder:
            return value
        holder, key = rng.choice(rng.choice(list(by_holder.values())))
        how = rng.random()
        if how < .6:
            holder[key] = odd_value(rng, secret, plain)
        elif how < .7:
            del holder[key]
        elif how < .8 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = holder[key] * rng.choice((-1, 0, 10**6, 0.5))
        elif how < .9:
            other, its = rng.choice(rng.choice(list(by_holder.values())))
            holder[key] = copy.deepcopy(other[its])
        elif isinstance(holder, MutableMapping):
            holder[rng.choice((*NAMES[:8], 'x', 'state_dict', 'items'))] = odd_value(rng, secret, plain)
        else:
            holder.append(odd_value(rng, secret, plain))
    return value


def changed_bytes(rng: Random, content: bytes, secret: str) -> bytes:
    """Bytes cut short, flipped, doubled, taken away, or a path written over them."""
    found = bytearray(content)
    if not found:
        return bytes(found)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, length = rng.randrange(len(found)), rng.choice((1, 1, 2, 8, 64))
        how = rng.randrange(6)
        if how == 0:
            del found[at:]
        elif how == 1:
            found[at] ^= 1 << rng.randrange(8)
        elif how == 2:
            found[at:at + length] = rng.randbytes(length)
        elif how == 3:
            found[at:at] = found[at:at + length]
        elif how == 4:
            del found[at:at + length]
        else:
            found[at:at] = rng.choice((*NAMES[:5], secret, '9' * 400, 'NaN', '\ufeff')).encode('utf-8', 'replace')
        if not found:
            break
    return bytes(found)
