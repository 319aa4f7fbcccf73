"""New classes: what --classes takes, and the rows it makes."""
from __future__ import annotations

import pytest
import torch

from mgdet_plugin.errors import UserError
from mgdet_plugin.keras_io.classes import TargetClasses, parse_classes, replace_class_rows


def test_reads_a_count_and_a_names_file(tmp_path):
    names = tmp_path / 'names.txt'
    names.write_text('\ufeffred cell\n\n  white cell \nplatelet\n', encoding='utf-8')
    assert parse_classes('3') == parse_classes(3) == TargetClasses(3)
    assert parse_classes(str(names)) == TargetClasses(3, ('red cell', 'white cell', 'platelet'))


@pytest.mark.parametrize('content, cause', [
    (b'', 'no class names'),
    (b'\n \n', 'no class names'),
    (b'cat\ndog\ncat\n', 'twice: cat'),
    (b'\xff\xfe\x00', 'cannot be read as text'),
    (b'x' * (2 ** 20 + 1), 'larger than'),
    ('\n'.join(map(str, range(10_001))).encode(), '10,001 names'),
])
def test_refuses_bad_names_files(tmp_path, content, cause):
    path = tmp_path / 'names.txt'
    path.write_bytes(content)
    with pytest.raises(UserError, match=cause):
        parse_classes(str(path))


@pytest.mark.parametrize('given, cause', [('0', '--classes 0'), ('-3', '--classes -3'), ('10001', 'from 1 to 10,000'),
                                          ('names.txt', 'neither a number')])
def test_refuses_bad_counts_and_missing_files(given, cause):
    with pytest.raises(UserError, match=cause):
        parse_classes(given)


def test_replaces_class_rows_and_keeps_all_others():
    weight, bias = torch.arange(40.).reshape(10, 4, 1, 1), torch.arange(10.)
    new_weight, new_bias = replace_class_rows(weight, bias, 8, [None] * 5000, torch.Generator().manual_seed(0))
    assert new_weight.shape == (5008, 4, 1, 1) and new_bias.shape == (5008,)
    assert torch.equal(new_weight[:8], weight[:8]) and torch.equal(new_bias[:8], bias[:8])
    assert not new_bias[8:].any()
    assert abs(new_weight[8:].mean()) < 3e-4 and abs(new_weight[8:].std() - 0.01) < 3e-4
    again = replace_class_rows(weight, bias, 8, [None] * 5000, torch.Generator().manual_seed(0))[0]
    assert torch.equal(again, new_weight)


def test_takes_rows_of_known_classes():
    weight, bias = torch.arange(40.).reshape(10, 4, 1, 1), torch.arange(10.)
    new_weight, new_bias = replace_class_rows(weight, bias, 8, [1, None, 0], torch.Generator().manual_seed(0))
    assert torch.equal(new_weight[8], weight[9]) and torch.equal(new_weight[10], weight[8])
    assert new_bias.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 0, 8]
    assert 0 < new_weight[9].abs().max() < 0.05
