"""Values as the text of a config: what is written is what is read."""
import random

from mgdet_plugin.prepare.literals import WIDTH, assigned


def value(draw, depth):
    kind = draw.choice(['dict', 'list', 'tuple', 'leaf'] if depth else ['leaf'])
    if kind == 'dict':
        return {f'key_{each}': value(draw, depth - 1) for each in range(draw.randint(0, 4))}
    if kind == 'leaf':
        return draw.choice([None, True, 0.5, -3, 1e-7, 'a text', "it's", '{{ fileDirname }}/x', 'word ' * 9])
    return (list if kind == 'list' else tuple)(value(draw, depth - 1) for _ in range(draw.randint(0, 4)))


def test_what_is_written_is_read_again():
    draw = random.Random(1)
    for _ in range(300):
        wanted = value(draw, 4)
        lines, read = assigned('found', wanted), {}
        exec('\n'.join(lines), read)
        assert read['found'] == wanted and type(read['found']) is type(wanted)
        assert all(len(line) <= WIDTH for line in lines)
