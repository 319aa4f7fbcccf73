"""The config's ``keep`` and ``trunk_cache``: what is taken, and the line for each value that is refused."""
import pytest
from torch import nn

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.plan.caching import TrunkCaching
from mgdet_plugin.plan.keeping import Keeping, check_weight, form_of, is_followed

IMAGES = dict(images='old/')
OPTIONS = ('images, share, weight, images_used, held_out, at_least, temperature, sure, unsure, on_new, recolour, '
           'cache, form, new_classes')


@pytest.mark.parametrize(('given', 'line'), [
    (3, "keep must be a dict such as dict(images='data/old/'), got 3"),
    (dict(IMAGES, colour=1, a=2), f"keep has no option ['a', 'colour']; it takes {OPTIONS}"),
    ({}, 'keep needs images, a folder of pictures like those the weights were trained on: '
     "keep=dict(images='data/old/'); where there are none keep=dict(on_new='recolour') keeps less"),
    (dict(IMAGES, recolour=1), 'keep.recolour must be True or False, got 1'),
    (dict(IMAGES, recolour=True, cache='file'), 'keep.cache remembers pictures as they are, and keep.recolour changes '
     'them each time; take one of the two out'),
    (dict(on_new='recolour', cache='file'), "keep.cache remembers pictures as they are, and keep.on_new='recolour' "
     'changes them each time; take one of the two out'),
    (dict(on_new='recolour', recolour=True), 'keep.recolour changes the pictures of keep.images, and none are given; '
     "for copies of the new ones take keep=dict(on_new='recolour')"),
    (dict(images=3), 'keep.images must be a folder or the config of a dataset, got 3'),
    *[(dict(IMAGES, held_out=value), 'keep.held_out must be a share from 0 and below 1, a folder or the config of a '
       f'dataset, got {value!r}') for value in (1, -0.1, True, [1])],
    *[(dict(IMAGES, share=value), f'keep.share must be a number above 0 and below 1, got {value!r}')
      for value in (0, 1, 'x', float('nan'))],
    (dict(IMAGES, at_least=0), 'keep.at_least must be a number above 0, got 0'),
    (dict(IMAGES, at_least=1.1), 'keep.at_least is a share, at most 1, got 1.1'),
    (dict(IMAGES, temperature=0), 'keep.temperature must be a number above 0, got 0'),
    (dict(IMAGES, temperature=float('inf')), 'keep.temperature must be a number above 0, got inf'),
    (dict(IMAGES, weight=-1), 'keep.weight must be a number from 0, got -1'),
    (dict(IMAGES, weight=float('inf')), 'keep.weight must be a number from 0, got inf'),
    *[(dict(IMAGES, sure=sure, unsure=unsure), 'keep.unsure and keep.sure must be scores from 0 to 1, the first not '
       f'above the second, got {(unsure, sure)!r}')
      for sure, unsure in ((0.2, 0.3), (1.1, 0.1), (0.4, -0.1), ('x', 0))],
    (dict(IMAGES, images_used=0), 'keep.images_used must be a whole number of pictures from 1, got 0'),
    (dict(IMAGES, on_new='x'), "keep.on_new must be one of ('distil', 'spare', 'recolour') or None, got 'x'"),
    (dict(IMAGES, cache='x'), "keep.cache must be one of ('memory', 'file') or None, got 'x'"),
    (dict(IMAGES, form='x'), "keep.form must be one of ('maps', 'boxes', 'features') or None, got 'x'"),
    (dict(IMAGES, new_classes='cat'), "keep.new_classes must be a list of names or indices, got 'cat'")])
def test_what_is_refused(given, line):
    with pytest.raises(UserError) as caught:
        Keeping.build(given)
    assert str(caught.value) == line


@pytest.mark.parametrize('given', [
    dict(images=dict(type='CocoDataset')), dict(on_new='distil'), dict(IMAGES, on_new='distil', cache='memory'),
    dict(IMAGES, held_out=0), dict(IMAGES, held_out='other/'), dict(IMAGES, held_out=dict(type='CocoDataset')),
    dict(IMAGES, sure=1, unsure=1), dict(IMAGES, sure=0, unsure=0), dict(IMAGES, at_least=1, weight=0, images_used=1),
    dict(IMAGES, share=0.99, form='boxes', recolour=True), dict(IMAGES, temperature=1e3)])
def test_what_is_taken(given):
    built = Keeping.build(given)
    assert {key: getattr(built, key) for key in given} == given


def test_new_classes_become_a_tuple():
    for given in (['cat', 2], ('cat', 2)):
        assert Keeping.build(dict(IMAGES, new_classes=given)).new_classes == ('cat', 2)
    assert Keeping.build(IMAGES).new_classes is None


def test_where_old_images_come_from():
    kinds = [Keeping(**IMAGES), Keeping(on_new='recolour'), Keeping(on_new='distil'),
             Keeping(**IMAGES, on_new='recolour')]
    assert [(each.holds_images, each.holds_copies) for each in kinds] == [
        (True, False), (True, True), (False, False), (True, True)]
    assert [each.beside(6) for each in kinds] == [6, 6, 0, 6] and kinds[0].beside(0) == 0
    assert [Keeping(**IMAGES, share=share).beside(4) for share in (0.2, 0.25, 1 / 3, 0.75)] == [1, 1, 2, 12]
    with pytest.raises(UserError) as caught:
        Keeping(**IMAGES, share=0.1).beside(4)
    assert str(caught.value) == ('keep.share 0.1 of a batch of 4 leaves no room for an old image; take a share of at '
                                 'least 0.2 or a larger batch')


def test_what_is_held_out():
    assert Keeping(**IMAGES).others(False) == 0.2 and Keeping(**IMAGES).others(True) == 0.0
    for held_out in (0, 0.5, 'other/'):
        assert Keeping(**IMAGES, held_out=held_out).others(False) == held_out
        assert Keeping(**IMAGES, held_out=held_out).others(True) == 0.0


def test_a_factor_may_be_nothing():
    check_weight('w', 0)
    with pytest.raises(UserError, match=r"^w must be a number from 0, got '1'$"):
        check_weight('w', '1')


def test_the_form_follows_from_the_head_and_what_was_pretrained(make_head):
    ours = nn.ModuleDict(dict(bbox_head=make_head()))
    ours.bbox_head = ours['bbox_head']
    for model, start, given, form in ((ours, 'full', None, 'maps'), (ours, 'backbone', None, 'features'),
                                      (ours, 'backbone', 'boxes', 'boxes'), (nn.Linear(1, 1), 'full', None, 'boxes'),
                                      (nn.Linear(1, 1), 'full', 'maps', 'maps')):
        assert form_of(model, start, given) == form


@pytest.mark.parametrize(('cfg', 'followed'), [
    (dict(val_cfg=dict(others=dict(old={}))), True), (dict(val_cfg=dict(others=dict(other={}))), False),
    (dict(val_cfg=dict(others=None)), False), (dict(val_cfg=None), False), ({}, False)])
def test_a_labelled_set_of_the_old_domain(cfg, followed):
    assert is_followed(cfg) is followed


@pytest.mark.parametrize(('given', 'line'), [
    ('4GB', "trunk_cache must be a dict such as dict(at_most='4GB'), got '4GB'"),
    (dict(size=1), "trunk_cache has no option ['size']; it takes where, at_most, dtype"),
    (dict(where='disk'), "trunk_cache.where must be one of ('memory', 'file'), got 'disk'"),
    (dict(dtype='int8'), "trunk_cache.dtype must be one of ('float32', 'float16'), got 'int8'"),
    *[(dict(at_most=size), f"trunk_cache.at_most must be a size in MB, GB, TB, such as '4GB', got {size!r}")
      for size in ('0GB', '4', 4, '4KB', 'x4GB', '4GB.', '.5GB', '4  GB')]])
def test_what_no_trunk_cache_is(given, line):
    with pytest.raises(UserError) as caught:
        TrunkCaching.build(given)
    assert str(caught.value) == line


def test_sizes_in_bytes():
    assert [TrunkCaching.build(dict(at_most=size)).most_bytes for size in ('4GB', '500 MB', '1.5TB')] == [
        4 * 1024**3, 500 * 1024**2, 3 * 1024**4 // 2]
    assert TrunkCaching.build({}) == TrunkCaching('memory', '4GB', 'float32')
