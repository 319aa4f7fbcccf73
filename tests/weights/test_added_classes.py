"""Classes added after those of a file or a checkpoint: what is known stays as it is, what is new is said."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from mgdet_plugin.common.checkpoints import new_classes_of
from mgdet_plugin.common.errors import UserError
from mgdet_plugin.weights.conversion import ADDED_SHARE, append_class_rows
from mgdet_plugin.weights.exporter import export_keras
from mgdet_plugin.weights.import_report import summary
from mgdet_plugin.weights.importer import import_keras
from mgdet_plugin.weights.mapping.architecture import predict_prefixes
from mgdet_plugin.weights.verify import verify_import
from tests.support.checkpoints import save, tiny_state
from tests.support.keras_files import TINY_OPTIONS, write_tiny

OLD = ('person', 'cat', 'motorcycle', 'car')
BASE = 5 + 3  # rows of box, objectness and anchors


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the small model as a Keras file and as a checkpoint, and lists of names."""
    write_tiny('keras3_model5_full.h5', tmp_path / 'model.h5')
    (tmp_path / 'old.txt').write_text('\n'.join(OLD))
    (tmp_path / 'new.txt').write_text('raccoon\nowl\n')
    (tmp_path / 'known.txt').write_text('raccoon\nMotorbike\ncat\n')
    trained = {key: value + 7 if key.endswith('num_batches_tracked') else value for key, value in tiny_state().items()}
    save(trained, tmp_path / 'best.pth', meta=dict(dataset_meta=dict(classes=OLD), epoch=3), optimizer=dict(state={}))
    return tmp_path


def add(files: Path, src: str, out: str = 'out.pth', **options: Any) -> dict[str, Any]:
    options = dict(add_classes=files / 'new.txt', cfg_options=TINY_OPTIONS) | options
    return import_keras(files / src, files / out, **options)


@pytest.mark.parametrize('classes', [1, 3, 80])
@pytest.mark.parametrize('count', [1, 5])
def test_probabilities_of_old_classes_stay_whatever_the_picture(classes, count):
    """The bound holds for every input, of rows of any size; at the worst, all old logits equal, it is reached."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(BASE + classes, 16, 1, 1, generator=generator).double()
    bias = torch.randn(BASE + classes, generator=generator).double() - 20
    features = 30 * torch.randn(500, 16, generator=generator).double()
    features[0] = 0
    bias[BASE:] = -20
    new_weight, new_bias = append_class_rows(weight, bias, BASE, count)
    assert torch.equal(new_weight[:len(weight)], weight) and torch.equal(new_bias[:len(bias)], bias)
    logits = features @ new_weight[BASE:, :, 0, 0].T + new_bias[BASE:]
    before, after = logits[:, :classes].softmax(-1), logits.softmax(-1)
    share = after[:, classes:].sum(-1)
    assert float(share.max()) < ADDED_SHARE and float(share[0]) == pytest.approx(ADDED_SHARE, rel=2e-3)
    assert float((before - after[:, :classes]).abs().max()) < ADDED_SHARE


@pytest.mark.parametrize('src', ['model.h5', 'best.pth'])
def test_all_rows_stay_new_ones_follow_and_all_can_be_verified_and_exported(src, files):
    source_classes = files / 'old.txt' if src == 'model.h5' else None  # a checkpoint names its own
    report = add(files, src, source_classes=source_classes, report=files / 'r.json')
    content, expected = torch.load(files / 'out.pth'), tiny_state()
    assert list(content) == ['meta', 'state_dict']
    state, meta = content['state_dict'], content['meta']
    for key, tensor in state.items():
        if '.predict_convs.' in key:
            assert len(tensor) == BASE + 4 + 2 and torch.equal(tensor[BASE + 4], tensor[BASE + 5])
            tensor = tensor[:BASE + 4]
        if not key.endswith('num_batches_tracked'):
            assert torch.equal(tensor, expected[key])
    counters = {int(tensor) for key, tensor in state.items() if key.endswith('num_batches_tracked')}
    assert counters == ({0} if src == 'model.h5' else {7})
    assert meta['dataset_meta']['classes'] == [*OLD, 'raccoon', 'owl']
    assert new_classes_of(content) == ('raccoon', 'owl') and report['classes']['new_classes'] == ['raccoon', 'owl']
    assert [row['source_row'] for row in report['classes']['rows']] == [0, 1, 2, 3, None, None]
    table = summary(report)
    assert 'new   raccoon' in table and 'kept  car <- car (3)' in table and 'num_classes=6' in table
    assert json.loads((files / 'r.json').read_text()) == report
    verified = verify_import(files / 'model.h5', files / 'out.pth')
    assert verified['agrees'] and verified['rows'] == dict(kept=BASE + 4, new=2)
    export_keras(files / 'out.pth', files / 'out.h5')
    with h5py.File(files / 'out.h5') as h5:
        assert h5['predict_conv_1/predict_conv_1/bias:0'].shape == (BASE + 6, )


def test_what_was_new_before_and_never_learnt_stays_new(files):
    import_keras(files / 'model.h5', files / 'some.pth', classes=files / 'known.txt', source_classes=files / 'old.txt',
                 cfg_options=TINY_OPTIONS)
    assert new_classes_of(torch.load(files / 'some.pth')) == ('raccoon', )
    (files / 'new.txt').write_text('owl\n')
    add(files, 'some.pth')
    content = torch.load(files / 'out.pth')
    assert new_classes_of(content) == ('raccoon', 'owl')
    assert content['meta']['dataset_meta']['classes'] == ['raccoon', 'Motorbike', 'cat', 'owl']
    before = torch.load(files / 'some.pth')['meta']['keras_import']
    assert content['meta']['keras_import']['anchors'] == before['anchors']


def test_classes_without_names_are_new_by_their_places(files):
    import_keras(files / 'model.h5', files / 'some.pth', classes=2, cfg_options=TINY_OPTIONS)
    assert new_classes_of(torch.load(files / 'some.pth')) == (0, 1)
    assert new_classes_of({}) == new_classes_of(dict(meta=3)) == new_classes_of(dict(meta=dict(new_classes=[]))) == ()


def test_other_classes_of_a_checkpoint_take_their_rows_by_name(files):
    """What the checkpoint had not learnt is not learnt under its new place either."""
    report = add(files, 'best.pth', add_classes=None, classes=files / 'known.txt')
    state, before = (torch.load(files / name)['state_dict'] for name in ('out.pth', 'best.pth'))
    for prefix in predict_prefixes('model'):
        for key in (f'{prefix}.weight', f'{prefix}.bias'):
            assert len(state[key]) == BASE + 3 and torch.equal(state[key][:BASE], before[key][:BASE])
            assert torch.equal(state[key][BASE + 1:], before[key][[BASE + 2, BASE + 1]])  # motorcycle, cat
    assert all(torch.equal(state[key], before[key]) for key in state if 'predict_convs' not in key)
    assert report['classes']['new_classes'] == ['raccoon']
    assert report['classes']['names'] == ['raccoon', 'Motorbike', 'cat']
    (files / 'order.txt').write_text('cat\nraccoon\nowl\n')
    again = add(files, 'out.pth', 'again.pth', add_classes=None, classes=files / 'order.txt')
    assert again['classes']['new_classes'] == ['raccoon', 'owl']


@pytest.mark.parametrize('forged', ['raccoon', {'a': 1}, ['a', 1], ['a', 'a'], [''], [-1], [10 ** 9], [True], [['a']]])
def test_a_forged_list_of_new_classes_is_refused(forged):
    with pytest.raises(UserError, match=r'^w\.pth: meta\.new_classes: '):
        new_classes_of(dict(meta=dict(new_classes=forged)), 'w.pth')


@pytest.mark.parametrize(('src', 'options', 'cause'), [
    ('model.h5', dict(), "--add-classes: the names of the file's 4 classes are not known"),
    ('model.h5', dict(source_classes='old.txt', add_classes='known.txt'),
     r'the file knows Motorbike \(it calls it motorcycle\), cat already; list new classes alone'),
    ('best.pth', dict(add_classes='known.txt'), 'the file knows Motorbike'),
    ('best.pth', dict(add_classes='3'), '--add-classes 3: a number has no names'),
    ('best.pth', dict(add_classes='absent.txt'), r'--add-classes .*absent\.txt: neither'),
    ('best.pth', dict(classes='new.txt'), '--classes names all .* give one of the two'),
    ('best.pth', dict(part='backbone'), '--add-classes is for --part model'),
    ('best.pth', dict(add_classes=None), r'best\.pth is a checkpoint, which needs no import; add classes'),
    ('best.pth', dict(source_classes='new.txt'), '2 names, but the file was trained on 4 classes'),
    ('best.pth', dict(cfg_options={}), 'nothing in the file fills backbone'),
    ('best.pth', dict(cfg_options=TINY_OPTIONS | {'model.bbox_head.anchors': [[(9, 9)] * 2] * 3}),
     r'best\.pth names 4 classes, its prediction maps have 5'),
    ('text.pth', dict(), r'text\.pth is no checkpoint that torch can load safely'),
    ('absent.pth', dict(), r'absent\.pth does not exist'),
    ('nan.pth', dict(), r'nan\.pth: bbox_head\.predict_convs\.1\.bias holds NaN'),
    ('forged.pth', dict(), r'meta\.dataset_meta\.classes: it names a class twice: a'),
    ('half.pth', dict(), r'half\.pth holds a backbone alone')])
def test_a_refusal_is_one_line_and_leaves_nothing(src, options, cause, files):
    (files / 'text.pth').write_text('not found')
    state = tiny_state()
    save(state, files / 'forged.pth', meta=dict(dataset_meta=dict(classes=['a', 'a', 'b', 'c'])))
    save({key: value for key, value in state.items() if key.startswith('backbone.')}, files / 'half.pth')
    state[f'{predict_prefixes("model")[1]}.bias'][0] = torch.nan
    save(state, files / 'nan.pth', meta=dict(dataset_meta=dict(classes=OLD)))
    given = {key: files / value if str(value).endswith('.txt') else value for key, value in options.items()}
    with pytest.raises(UserError, match=cause):
        add(files, src, **given)
    assert not (files / 'out.pth').exists()
