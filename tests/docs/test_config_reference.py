"""docs/config.md names every key, its default and its allowed values, as the code has them, and nothing else."""
import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
from functools import cache

import mmdet.registry
import mmengine.registry
import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop

import mgdet_plugin
from mgdet_plugin.common.guard_record import STARTS
from mgdet_plugin.guard.guard_options import ACTIONS, KINDS, GuardOptions
from mgdet_plugin.models.maths import suppression
from mgdet_plugin.models.maths.overlaps import OVERLAP_KINDS
from mgdet_plugin.models.multigrid_bbox_coder import ANCHOR_USES, SCORE_FACTORS
from mgdet_plugin.models.multigrid_head import TEST_CFG
from mgdet_plugin.models.multigrid_loss import CLASS_WEIGHTS, NORMALIZERS
from mgdet_plugin.plan import caching, keeping, plan, rules, until
from mgdet_plugin.plan.rates import RateRules
from tests.docs.pages import ROOT, rows, sections

NEEDED = object()
CONFIG, RETENTION, GUARD, STAGES = (ROOT / f'docs/{name}.md' for name in ('config', 'retention', 'guard', 'stages'))
PLAN = {'start': None, 'allow': (), 'early_stopping': plan.EARLY_STOPPING}
# What is not a class of its own: heading -> fields with their defaults.
OTHERS = {'A stage': plan.Stage, 'until': until.Until, 'plateau': until.Plateau, 'plan': PLAN,
          'trunk_cache': caching.TrunkCaching, 'test_cfg': TEST_CFG,
          'nms': suppression.NMSOptions._field_defaults, 'StagedOptimWrapperConstructor': RateRules,
          'DriftGuardHook': {name: default for name, default in vars(GuardOptions()).items() if name not in KINDS}}
INHERITED = {'StagedTrainLoop': EpochBasedTrainLoop, 'WholeCheckpointHook': CheckpointHook}
# Handed over by what builds them, not set in a config.
HANDED = {'StagedTrainLoop': ('runner', 'dataloader'), 'LossValLoop': ('runner', 'dataloader', 'evaluator'),
          'StagedLR': ('optimizer', ), 'MultiGridAssigner': ('anchors', 'strides'),
          'MultiGridBBoxCoder': ('anchors', 'strides', 'xy_scale', 'use_softmax')}
WHOLE = {'KeepHook': 'keep', 'TrunkCacheHook': 'trunk_cache',
         **dict.fromkeys(('MultiGridDet', 'OptionalTensorboardVisBackend', 'FasterCocoMetric'),
                         'the arguments are those of its parent'),
         **dict.fromkeys(('StagedDataset', 'StagedBatchSampler', 'OldImages'), 'the train loop builds it')}
ALLOWED = {('A stage', 'schedule'): plan.SCHEDULES, ('until', 'rule'): until.RULES, ('plan', 'start'): STARTS,
           ('MultiGridLoss', 'normalizers'): NORMALIZERS, ('MultiGridLoss', 'overlap'): OVERLAP_KINDS,
           ('MultiGridLoss', 'class_weights'): CLASS_WEIGHTS, ('MultiGridBBoxCoder', 'score_factors'): SCORE_FACTORS,
           ('MultiGridBBoxCoder', 'anchor_use'): ANCHOR_USES, ('nms', 'type'): suppression.METHODS,
           ('nms', 'decay'): suppression.SOFT_DECAYS, ('nms', 'mode'): suppression.CLUSTER_MODES,
           ('nms', 'overlap'): OVERLAP_KINDS, ('Options', 'form'): keeping.FORMS, ('Options', 'on_new'): keeping.ON_NEW,
           ('Options', 'cache'): keeping.CACHES, ('trunk_cache', 'where'): keeping.CACHES,
           ('trunk_cache', 'dtype'): caching.DTYPES}
TYPES = {'int': 'whole number', 'float': 'number', 'bool': 'True or False'}


def ours():
    """Name -> class of everything the package registers."""
    for module in pkgutil.walk_packages(mgdet_plugin.__path__, 'mgdet_plugin.'):
        importlib.import_module(module.name)
    registries = [each for each in vars(mmdet.registry).values() if isinstance(each, mmengine.registry.Registry)]
    return {kind.__name__: kind for each in registries for kind in each.module_dict.values()
            if kind.__module__.startswith('mgdet_plugin.')}


def parameters(kind):
    """Parameter -> (default, annotation) of a dataclass or of a class built from a config."""
    if isinstance(kind, dict):
        return {name: (default, '') for name, default in kind.items()}
    if dataclasses.is_dataclass(kind):
        missing = dataclasses.MISSING
        return {each.name: (each.default if each.default is not missing else
                            each.default_factory() if each.default_factory is not missing else NEEDED, str(each.type))
                for each in dataclasses.fields(kind) if each.init}
    found = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return {each.name: (NEEDED if each.default is each.empty else each.default, str(each.annotation))
            for each in found if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}


def documented(page, heading):
    """Field -> row of the tables below a heading whose first column names fields."""
    found = rows(sections(page)[heading])
    names = [re.findall('`(.+?)`', next(iter(row.values()))) for row in found]
    assert all(len(each) == 1 for each in names), f'{heading}: a row names one field'
    assert len({each[0] for each in names}) == len(names), f'{heading}: a field has one row'
    return {name: row for (name, ), row in zip(names, found)}


def literal(cell):
    """What a cell says: a literal in backticks, perhaps with a word on it behind a colon."""
    said = re.match(r'`(.+?)`(?:: .+)?$', cell)
    assert said, f'{cell!r} should be a value in backticks'
    return ast.literal_eval(said[1])


def check(page, heading, kind, optional=()):
    """Hold the rows below a heading against the parameters of a class."""
    table, known = documented(page, heading), parameters(kind)
    known = {name: each for name, each in known.items() if name not in HANDED.get(heading, ())}
    extra = parameters(optional) if optional else {}
    assert set(table) >= set(known) and set(table) <= {*known, *extra}, heading
    for name, row in table.items():
        default, annotation = known.get(name) or extra[name]
        if default is NEEDED:
            assert row['default'] == 'needed', f'{heading}: {name}'
        else:
            assert literal(row['default']) == default, f'{heading}: {name} is {default!r}'
        plain = annotation.removesuffix(' | None').strip("'")
        if plain in TYPES:
            assert row['type'].startswith(TYPES[plain]), f'{heading}: {name} is {plain}'
        for value in ALLOWED.get((heading, name), ()):
            assert f"'{value}'" in row['meaning'] + row['default'], f'{heading}: {name} may be {value!r}'


REGISTERED = ours()
CLASSES = sorted(name for name in REGISTERED if name in sections(CONFIG) and name not in {*OTHERS, *WHOLE})


@pytest.mark.parametrize('name', CLASSES)
def test_a_class_has_a_row_for_each_parameter_with_its_default(name):
    check(CONFIG, name, REGISTERED[name], INHERITED.get(name, ()))


@pytest.mark.parametrize('heading', OTHERS)
def test_fields_of_the_plan_and_options_have_a_row_each_with_their_default(heading):
    check(CONFIG, heading, OTHERS[heading])


def test_the_options_of_keep_are_in_its_own_page():
    check(RETENTION, 'Options', keeping.Keeping)


def test_the_kinds_of_trouble_and_their_actions_are_in_the_guards_page():
    table = documented(GUARD, 'What is caught')
    kinds = {name: row for name, row in table.items() if 'default action' in row}
    assert {name: tuple(re.findall('`(.+?)`', row['default action'])) for name, row in kinds.items()} == {
        kind: GuardOptions().actions(kind) for kind in KINDS}
    assert set(table) - set(kinds) == set(ACTIONS)
    assert set(re.findall('`(.+?)`', sections(CONFIG)['DriftGuardHook'].split('\n|')[0])) == set(KINDS)


def test_the_rules_have_a_row_each():
    table = rows(sections(STAGES)['Rules'])
    assert {row['name'].strip('`'): row['kind'] for row in table} == {
        **dict.fromkeys(rules.ERRORS, 'error'), **dict.fromkeys(rules.WARNINGS, 'warning')}


def test_every_registered_class_is_named():
    page = CONFIG.read_text()
    for name, kind in REGISTERED.items():
        told = name in sections(CONFIG) or name in WHOLE or not parameters(kind)
        assert told and re.search(rf'`{name}`|^### {name}$', page, flags=re.MULTILINE), name


def test_every_class_that_is_named_is_there():
    known = {name for each in vars(mmdet.registry).values() if isinstance(each, mmengine.registry.Registry)
             for registry in (each, each.parent) for name in (registry.module_dict if registry else ())}
    for name in re.findall('`([A-Z][a-z]+[A-Z][A-Za-z0-9]+)`', CONFIG.read_text()):
        assert name in known, name
    tables = {heading for heading, text in sections(CONFIG).items() if any('default' in row for row in rows(text))}
    assert tables <= {*OTHERS, *REGISTERED}


@cache
def config(name):
    return Config.fromfile(ROOT / f'configs/_base_/{name}.py')


def of_configs(heading, column, name):
    """What the configs of a column say of a field; NEEDED where they say nothing."""
    files = {'fine-tuning': ('multigrid_darknet53', 'multigrid_nano'), 'from nothing': ('multigrid_scratch', )}[column]
    said = []
    for model in (config(f'models/{file}').model for file in files):
        head = model.bbox_head
        part = {'MultiGridHead': head, 'MultiGridLoss': head.loss, 'MultiGridAssigner': head.assigner,
                'MultiGridBBoxCoder': head.bbox_coder, 'test_cfg': model.test_cfg, 'nms': model.test_cfg.nms,
                'WholeCheckpointHook': config('default_runtime').default_hooks.checkpoint}[heading]
        said.append(part.get(name, NEEDED))
    assert all(each == said[0] for each in said)
    return said[0]


@pytest.mark.parametrize('heading', ['MultiGridHead', 'MultiGridLoss', 'MultiGridAssigner', 'MultiGridBBoxCoder',
                                     'test_cfg', 'nms', 'WholeCheckpointHook'])
def test_what_our_configs_set_otherwise_has_a_column(heading):
    parts = ('assigner', 'bbox_coder', 'loss', 'nms', 'norm_cfg', 'bridge_channels')  # tables or a text of their own
    for name, row in documented(CONFIG, heading).items():
        for column in {'fine-tuning', 'from nothing'} & set(row):
            default = row['default'] if row['default'] == 'needed' else literal(row['default'])
            said = of_configs(heading, column, name) if name not in parts and default != 'needed' else NEEDED
            told = literal(row[column]) if row[column] else default
            assert (said is NEEDED and not row[column]) or told == said, f'{heading}.{name}, {column}: {said!r}'


def test_the_hooks_stand_where_the_page_says():
    hooks = config('default_runtime').default_hooks
    table = {name: row['where'] for name, row in documented(CONFIG, 'Hooks').items()}
    kinds = mmdet.registry.HOOKS.module_dict
    assert set(table) == {name for name, kind in REGISTERED.items() if kinds.get(name) is kind}
    assert {name: f'`default_hooks.{key}`' for key, hook in hooks.items()
            if (name := hook['type']) in REGISTERED} == {
        name: where for name, where in table.items() if 'default_hooks' in where}


@pytest.mark.parametrize(('was', 'now'), [
    ('| `xy_scale` | number above 0 | `0.15` |', '| `xy_scale` | number above 0 | `0.2` |'),
    ('| `focal` |', '| `focus` |'), ("'sqrt_inverse'", "'root'")])
def test_a_page_that_says_something_else_is_noticed(was, now, tmp_path):
    page = tmp_path / 'config.md'
    text = CONFIG.read_text()
    assert was in text
    page.write_text(text.replace(was, now))
    with pytest.raises(AssertionError):
        for name in ('MultiGridHead', 'MultiGridLoss'):
            check(page, name, REGISTERED[name])
