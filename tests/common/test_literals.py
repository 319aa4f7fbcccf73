"""Values as the text of a config: what is written is what is read."""
import random

from mgdet_plugin.common.literals import WIDTH, assigned, laid_out


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


def test_a_config_reads_its_own_text_again():
    wanted = {'names': {'a': 1, 'class': {'lambda': 2}, 'two words': ()}, 'numbers': {3: [{}], 'x': float('inf')},
              'long': {f'entry {number}': dict(values=['word ' * 5] * 3) for number in range(4)}, 'one': (1, )}
    text, read = laid_out(wanted), {}
    exec(text, {'__builtins__': dict(dict=dict, float=float)}, read)
    assert read == wanted
    assert [*read] == sorted(wanted) and all(len(line) <= WIDTH for line in text.splitlines())
