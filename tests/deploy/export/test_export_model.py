"""Exported files: the boxes of the weights, at any batch and size, or nothing at all."""
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mgdet_plugin import UserError, detect
from mgdet_plugin.datasets.sources.annotated import Box, Picture
from mgdet_plugin.deploy.backends.torch_backend import build_model, read_model
from mgdet_plugin.deploy.description import Description
from mgdet_plugin.deploy.export import export_model as export_module
from mgdet_plugin.deploy.export.export_model import export_model
from mgdet_plugin.deploy.export.graph import DetectorGraph
from mgdet_plugin.deploy.export.labelled import labelled_pictures, mean_ap
from mgdet_plugin.deploy.export.parity import Parity, map_difference, matches
from mgdet_plugin.deploy.export.quantisation import LADDER, decoding_operations, quantise
from tests.support.predicted import needs, tiny_model
from tests.support.small_run import CLASSES

FORMS = dict(onnx='.onnx', openvino='.xml', torch='.pth')


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp('export'))


def graph_of(tiny):
    return DetectorGraph(build_model(read_model(str(tiny.weights), tiny.config), 'w'), with_maps=True)


def quiet(line):
    """Say nothing."""


def export(tiny, out, **options):
    return export_model(tiny.weights, out, tiny.config, say=quiet, **options)


@pytest.mark.parametrize(('form', 'nms'), [('onnx', False), ('onnx', True), ('openvino', True),
                                           ('torch', False)])
def test_the_file_finds_what_the_weights_find(tiny, tmp_path, form, nms):
    needs(*dict(onnx=('onnx', 'onnxruntime'), openvino=('onnx', 'openvino'), torch=())[form])
    out = tmp_path / f'm{FORMS[form]}'
    parity = export(tiny, out, nms=nms)  # the form by its suffix
    assert parity.maps < 1e-3 and (parity.matched, parity.extra) == (parity.boxes, 0) and parity.boxes > 50
    assert parity.corner < 1e-2 and parity.score < 1e-4 and abs(parity.drop) < 1e-6
    assert sorted(each.suffix for each in tmp_path.iterdir()) == (['.bin', '.xml'] if form == 'openvino' else
                                                                   [FORMS[form]])
    reader = detect(out, threads=1)
    assert (reader.classes, reader.input_size) == (CLASSES, (64, 64))
    ours = detect(tiny.weights, tiny.config)(tiny.pictures)
    for one, other in zip(reader(tiny.pictures, batch=3), ours):  # a batch the graph was not traced with
        torch.testing.assert_close(one.pred_instances.bboxes, other.pred_instances.bboxes, rtol=0, atol=1e-2)
        assert one.pred_instances.labels.equal(other.pred_instances.labels)


def test_a_graph_takes_other_sizes(tiny, tmp_path):
    needs('onnx', 'onnxruntime')
    import onnxruntime
    graph = graph_of(tiny)
    export(tiny, tmp_path / 'm.onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'm.onnx')
    for shape in ((1, 3, 96, 32), (5, 3, 64, 160)):
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        with torch.no_grad():
            wanted = graph(torch.from_numpy(images))[:3]
        for one, other in zip(session.run(None, dict(images=images)), wanted, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-3, atol=1e-3)


def test_half_precision_takes_half_the_room(tiny, tmp_path):
    needs('onnx', 'openvino')
    from mgdet_plugin.deploy.export.formats import onnx_model, openvino_model, save_openvino
    model = openvino_model(onnx_model(graph_of(tiny), (64, 64)))
    about = Description(CLASSES, [(0, 0, 0)] * 3, (64, 64), 128, dict(score_thr=0.1))
    for precision in ('fp32', 'fp16'):
        save_openvino(model, replace(about, precision=precision), tmp_path / f'{precision}.xml')
    assert (tmp_path / 'fp16.bin').stat().st_size < 0.6 * (tmp_path / 'fp32.bin').stat().st_size


def test_int8_leaves_layers_in_float_until_the_bound_holds(tiny, monkeypatch):
    """The third attempt is taken, with fewer layers in integers than the first, and nothing of the decoding."""
    needs('onnx', 'openvino', 'nncf')
    import nncf

    from mgdet_plugin.deploy.export.formats import onnx_model, openvino_model
    model = openvino_model(onnx_model(graph_of(tiny), (64, 64)))
    picture = [np.zeros((1, 3, 64, 64), np.uint8)]
    monkeypatch.setattr('mgdet_plugin.deploy.export.quantisation.LADDER', (LADDER[0], LADDER[-1]))
    layers = []

    def measure(attempt):
        layers.append(sum(node.get_type_name() == 'FakeQuantize' for node in attempt.get_ordered_ops()))
        return 0.5 if len(layers) == 1 else 0.9

    chosen = quantise(model, picture, measure, 0.8, quiet)
    quantised = [node for node in chosen.get_ordered_ops() if node.get_type_name() == 'FakeQuantize']
    assert layers[0] > layers[1] == len(quantised) > 0
    assert not decoding_operations(model) & {node.get_friendly_name() for node in quantised}
    assert not any(node.get_type_name() == 'FakeQuantize' for node in model.get_ordered_ops())
    monkeypatch.setattr(nncf, 'quantize', lambda given, *_, **__: given)
    with pytest.raises(UserError, match=r'int8 reaches an AP of 0\.5000 even with .* in floating point'):
        quantise(model, picture, lambda attempt: 0.5, 0.8, quiet)


def test_a_broken_bound_leaves_nothing_and_an_earlier_file_as_it_was(tiny, tmp_path, monkeypatch):
    out = tmp_path / 'm.pth'
    out.write_bytes(b'earlier')
    reached = iter((0.5, 0.4))  # of the weights, then of the file
    monkeypatch.setattr('mgdet_plugin.deploy.export.parity.mean_ap', lambda *_: next(reached))
    with pytest.raises(UserError, match=r'fp32 costs 0\.1000 of AP .*more than --max-drop 0\.01; nothing was written'):
        export(tiny, out, form='torch')
    assert [each.name for each in tmp_path.iterdir()] == ['m.pth'] and out.read_bytes() == b'earlier'


def parity(**fields):
    return Parity(**{**dict(pictures=2, maps=1e-5, map_size=20.0, boxes=3, matched=2, extra=1, corner=0.5, score=0.1,
                            ap=(0.5, 0.495), milliseconds=(20.0, 10.0), bytes=(2_000_000, 1_000_000)), **fields})


def test_bounds_of_parity():
    parity().check('fp32', 0.01)
    parity(maps=1.0).check('int8', 0.01)
    parity(maps=0.02, map_size=7000.0).check('fp32', 0.01)
    table = parity().table(0.01)
    assert '2 matched, 1 missing, 1 extra' in table and '2.00 times as fast' in table and 'judges nothing' not in table
    assert 'less AP there than --max-drop 1 allows to lose: it judges nothing' in parity().table(1)
    for fields, precision in ((dict(ap=(0.5, 0.489)), 'int8'), (dict(maps=2e-3), 'fp32'),
                              (dict(maps=0.08, map_size=7000.0), 'fp32'), (dict(maps=float('nan')), 'fp32'),
                              (dict(maps=float('inf'), map_size=float('inf')), 'fp32')):
        with pytest.raises(UserError, match='nothing was written'):
            parity(**fields).check(precision, 0.01)


def test_each_map_is_held_against_its_own_bound():
    """A small map that is off by more than 0.001 is not hidden by a large one."""
    pictures = [Picture('a', ()), Picture('b', ())]
    reference = SimpleNamespace(prepared=lambda path: path)
    ours = dict(a=[np.full(3, 9.0), np.full(3, -7000.0)], b=[np.full(3, 8.0), np.full(3, 7000.0)])
    theirs = dict(a=[np.full(3, 9.0005), np.full(3, -7000.05)], b=[np.full(3, 8.0009), np.full(3, 7000.01)])
    assert map_difference(reference, pictures, (ours.get, theirs.get)) == pytest.approx((9e-4, 8.0))
    theirs['a'][1] = np.full(3, np.nan)
    assert np.isnan(map_difference(reference, pictures, (ours.get, theirs.get))[0])


def test_boxes_match_one_to_one_within_a_class():
    from mmengine.structures import InstanceData

    def found(boxes, labels, scores):
        return InstanceData(bboxes=torch.tensor(boxes, dtype=torch.float32), labels=torch.tensor(labels),
                            scores=torch.tensor(scores))

    first = found([[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]], [0, 0, 1], [0.9, 0.8, 0.7])
    second = found([[0, 0, 10, 9], [50, 50, 60, 60]], [0, 0], [0.6, 0.5])
    corners, scores = matches(first, second)
    assert corners.tolist() == [1.0]
    torch.testing.assert_close(scores, torch.tensor([0.3]))
    assert len(matches(first, second[:0])[0]) == len(matches(first[:0], second)[0]) == 0


def test_mean_ap_of_a_perfect_and_a_wrong_answer():
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    pictures = [Picture('a', (Box('red', (10, 10, 20, 20)), Box('blue', (0, 0, 5, 5), ignore=True)))]

    def answer(box, label):
        return [DetDataSample(pred_instances=InstanceData(bboxes=torch.tensor([box]), scores=torch.tensor([0.9]),
                                                          labels=torch.tensor([label])))]

    assert mean_ap(pictures, CLASSES, answer([10.0, 10, 30, 30], 0)) > 0.999
    assert mean_ap(pictures, CLASSES, answer([10.0, 10, 30, 30], 1)) == 0.0
    assert mean_ap(pictures, CLASSES, answer([40.0, 40, 50, 50], 0)) == 0.0


def test_pictures_to_measure_on(tiny, tmp_path):
    cfg = Config.fromfile(tiny.config)
    assert [each.path for each in labelled_pictures(cfg, CLASSES, None, 9)] == tiny.pictures
    chosen = labelled_pictures(cfg, ('red', ), None, 2)
    assert [each.path for each in chosen] == tiny.pictures[::2] and {box.name for each in chosen
                                                                    for box in each.boxes} <= {'red'}
    folder = tmp_path / 'set'
    for split, size in (('train', (40, 40)), ('valid', (50, 40))):
        (folder / split).mkdir(parents=True)
        Image.new('RGB', size).save(folder / split / 'p.png')
        (folder / split / '_annotations.json').write_text(json.dumps(dict(
            images=[dict(id=1, file_name='p.png', width=size[0], height=size[1])],
            categories=[dict(id=1, name='green')],
            annotations=[dict(id=1, image_id=1, category_id=1, bbox=[1, 2, 3, 4], area=12, iscrowd=0)])))
    only, = labelled_pictures(cfg, CLASSES, folder, 9)
    assert only.path.parent.name == 'valid' and only.boxes[0].bbox == (1, 2, 3, 4)
    with pytest.raises(UserError, match=r"has no box of the model's classes \(pink\), it has green"):
        labelled_pictures(cfg, ('pink', ), folder, 9)
    cfg.val_dataloader.dataset.data_root = 'nowhere/'
    with pytest.raises(UserError, match=r'nowhere.*or give others with --pictures'):
        labelled_pictures(cfg, CLASSES, None, 9)


@pytest.mark.parametrize(('options', 'line'), [
    (dict(form='onnx', precision='int8'), '--precision of onnx must be one of fp32'),
    (dict(form='openvino'), r'format openvino must end in \.xml'),
    (dict(max_drop=2), '--max-drop must be a number from 0 to 1, got 2'),
    (dict(count=0), '--count must be a whole number from 1, got 0')])
def test_options_that_do_not_go(tiny, tmp_path, options, line):
    needs('onnx', 'onnxruntime', 'openvino')
    with pytest.raises(UserError, match=line):
        export(tiny, tmp_path / 'm.onnx', **options)
    assert list(tmp_path.iterdir()) == []


def test_a_pipeline_that_does_more_than_a_letterbox_is_refused(tiny, tmp_path):
    cfg = Config.fromfile(tiny.config)
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='RandomFlip', prob=0.0))
    cfg.dump(tmp_path / 'c.py')
    with pytest.raises(UserError, match='letterboxes and packs pictures and does nothing else'):
        export_model(tiny.weights, tmp_path / 'm.pth', tmp_path / 'c.py', form='torch', say=quiet)


@pytest.mark.parametrize('suffix', list(FORMS.values()))
def test_a_full_disk_is_one_line_and_nothing_is_left(tiny, tmp_path, monkeypatch, suffix):
    needs('onnx', 'onnxruntime', 'openvino')

    def fail(*args, **options):
        raise OSError(28, 'No space left on device') if suffix == '.onnx' else RuntimeError('iostream error')

    monkeypatch.setattr(export_module, 'write', fail)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=0))
    with pytest.raises(UserError, match='No space left on device; nothing was written'):
        export(tiny, tmp_path / f'm{suffix}')
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_folder_is_one_line(tiny):
    with pytest.raises(UserError, match=r'cannot write /proc/m\.pth: .*; give another path'):
        export(tiny, Path('/proc/m.pth'))
