"""Which side a picture is on follows from its content: copies together, the same at every call, none moved by more."""
from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.datasets.sources.annotated import Picture
from mgdet_plugin.prepare.splits import cut_by_hash, split_pictures
from tests.support.annotated_sets import picture

hashes = st.sets(st.integers(0, 10 ** 6).map(lambda number: sha256(str(number).encode()).hexdigest()), min_size=2)


@given(hashes, st.sampled_from([('val', ), ('val', 'test')]), st.sampled_from([0.1, 0.15]))
def test_every_content_has_one_side_and_no_side_is_empty(contents, cut, share):
    sides = cut_by_hash(contents, cut, share)
    assert set(sides) == contents and sides == cut_by_hash(set(contents), cut, share)
    assert set(sides.values()) == {'train', *cut[:len(contents) - 1]}


def test_of_two_contents_none_is_for_the_test_wherever_it_falls():
    contents = {sha256(str(number).encode()).hexdigest() for number in (41, 179543)}  # one falls into the test set
    assert set(cut_by_hash(contents, ('val', 'test'), 0.15).values()) == {'train', 'val'}


@given(hashes.filter(lambda contents: len(contents) > 2))
def test_what_is_added_moves_nothing_that_had_its_place_by_its_hash(contents):
    """But where a side had been filled up because it was empty."""
    more = {sha256(f'new {number}'.encode()).hexdigest() for number in range(200)}
    many = contents | more
    before, after = (cut_by_hash(each, ('val', 'test'), 0.15) for each in (many, many | {'f' * 64}))
    assert after == {**before, 'f' * 64: 'train'}


def test_shares_are_about_those_asked_for():
    sides = list(cut_by_hash({sha256(str(each).encode()).hexdigest() for each in range(4000)}, ('val', 'test'),
                             0.15).values())
    assert all(abs(sides.count(name) / 4000 - 0.15) < 0.02 for name in ('val', 'test'))


def pictures(folder: Path, splits: list[str | None]) -> list[Picture]:
    return [Picture(picture(folder / f'{index}.png', shade=index // 2), (), split)
            for index, split in enumerate(splits)]  # two of each content


def test_copies_are_on_one_side_wherever_they_lie(tmp_path):
    split = split_pictures(pictures(tmp_path, [None] * 40))
    sides = [each.split for each in split.pictures]
    assert sides[::2] == sides[1::2] and set(sides) == {'train', 'val', 'test'} and '20 are copies' in split.line
    moved = [Picture(picture(tmp_path / 'other' / f'{name}.png', shade=shade), ())
             for name, shade in enumerate(reversed(range(20)))]
    assert [each.split for each in split_pictures(moved).pictures] == sides[::-2]


@pytest.mark.parametrize(('given', 'kept', 'said'), [
    (['train', 'val'], ['train', 'val'], 'splits as given'),
    ([None, 'val'], ['train', 'val'], 'splits as given'),
    (['train', 'val', 'test', None], ['train', 'val', 'test'], '1 pictures of no split left out')])
def test_splits_that_are_given_stay(given, kept, said, tmp_path):
    split = split_pictures(pictures(tmp_path, given))
    assert [each.split for each in split.pictures] == kept and said in split.line


def test_val_is_cut_from_train_where_only_test_is_given(tmp_path):
    split = split_pictures(pictures(tmp_path, ['train'] * 20 + ['test'] * 4))
    assert len(split.of('test')) == 4 and split.names == ['train', 'val', 'test']
    assert len(split.of('train')) + len(split.of('val')) == 20


@pytest.mark.parametrize(('given', 'cause'), [(['val', 'test'], 'none to train on'), ([None, None], 'cannot be split')])
def test_what_cannot_be_split_is_refused(given, cause, tmp_path):
    with pytest.raises(UserError, match=cause):
        split_pictures(pictures(tmp_path, given))
