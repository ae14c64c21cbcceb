"""Survey timm's networks: which have branches that can be dropped, and what can be done with each block of theirs."""
from dataclasses import dataclass, field
from typing import Dict, List, Sequence, Set

import timm
import torch
from timm.models import model_entrypoint
from torch import nn

from ..layers.guards import looks_at_batch
from ..layers.targets import Target, class_name, find_targets
from ..output.terminal import progress_bar
from ..zoo.without_drop_paths import RESIDUAL_MODULES, UNFIT_MODULES

__all__ = ['Family', 'Survey', 'format_survey', 'survey_families']


@dataclass
class Family:
    """The blocks of one class, with the names of the networks that hold them and of their drop paths.

    Attributes:
        looks_at_batch: Whether a norm in them takes the statistics of the batch: skipping is then not masking.
        can_skip: Whether the branches of these blocks can be left out, in some of them at least.
        reasons: Why their branches can only be masked, and the networks where that is so.
    """
    models: Set[str] = field(default_factory=set)
    drop_paths: Set[str] = field(default_factory=set)
    looks_at_batch: bool = False
    can_skip: bool = False
    reasons: Dict[str, Set[str]] = field(default_factory=dict)

    def add(self, model_name: str, target: Target) -> None:
        self.models.add(model_name)
        self.drop_paths.update(target.drop_path_names)
        self.looks_at_batch |= looks_at_batch(target.block)
        self.can_skip |= target.stochastic_class is not None
        if target.stochastic_class is None:
            self.reasons.setdefault(target.reason, set()).add(model_name)


@dataclass
class Module:
    """The networks without a drop path that a module of timm registers.

    Attributes:
        models: Their names.
        blocks: Classes of their blocks whose branches can be dropped all the same; none in some modules.
    """
    models: Set[str] = field(default_factory=set)
    blocks: Set[str] = field(default_factory=set)


@dataclass
class Survey:
    """Families by their class, as in `'vision_transformer.Block'`, and networks with branches that can only be masked.

    All branches of the networks in `whole` can be left out. Those without a drop path are in `modules` by their module.
    """
    families: Dict[str, Family] = field(default_factory=dict)
    whole: List[str] = field(default_factory=list)
    masked: List[str] = field(default_factory=list)
    modules: Dict[str, Module] = field(default_factory=dict)


def survey_families(model_names: Sequence[str]) -> Survey:
    """Look at the blocks of networks, without memory for weights."""
    survey = Survey()
    with progress_bar(len(model_names), 'networks', 'network') as progress:
        for model_name in model_names:
            model = _create(model_name)
            targets = [] if _module_of(model_name) in RESIDUAL_MODULES else find_targets(model, 'DropPath')
            for target in targets:
                survey.families.setdefault(class_name(target.block), Family()).add(model_name, target)
            if targets:
                is_whole = all(target.stochastic_class is not None for target in targets)
                (survey.whole if is_whole else survey.masked).append(model_name)
            else:
                _add_without_drop_path(survey, model_name, model)
            progress.update()
    survey.families = dict(sorted(survey.families.items()))
    survey.modules = dict(sorted(survey.modules.items()))
    return survey


def _add_without_drop_path(survey: Survey, model_name: str, model: nn.Module) -> None:
    module = survey.modules.setdefault(_module_of(model_name), Module())
    module.models.add(model_name)
    module.blocks.update(class_name(target.block) for target in find_targets(model, 'ResidualBlock'))


def _module_of(model_name: str) -> str:
    return model_entrypoint(model_name).__module__.rpartition('.')[2]


def format_survey(survey: Survey) -> str:
    """What was found, as Markdown: a sentence and a table for networks with drop paths, and for those without."""
    parts = [_format_families(survey)] if survey.families else []
    return '\n\n'.join([*parts, _format_modules(survey)] if survey.modules else parts)


def _format_families(survey: Survey) -> str:
    num_classes = sum(family.can_skip for family in survey.families.values())
    num_names = len(survey.whole) + len(survey.masked)
    lines = [
        f'timm {timm.__version__}: {num_classes} of {len(survey.families)} classes of blocks with drop paths can leave'
        f' out what they drop, and so can {len(survey.whole)} of {num_names} networks in every block. All can mask it.',
        '',
        '| class | names | drop paths | norms | dropped branches |',
        '| --- | --- | --- | --- | --- |',
    ]
    for name, family in survey.families.items():
        norms = 'of the batch' if family.looks_at_batch else 'of each sample'
        reasons = '; '.join(f'{reason} ({len(models)} names)' for reason, models in family.reasons.items())
        what = 'skipped' if family.can_skip else 'masked'
        what += f'; masked where {reasons}' if family.can_skip and reasons else f': {reasons}' if reasons else ''
        lines.append(f'| {name} | {len(family.models)} | {", ".join(sorted(family.drop_paths))} | {norms} | {what} |')
    return '\n'.join(lines)


def _format_modules(survey: Survey) -> str:
    num_names = sum(len(module.models) for module in survey.modules.values())
    num_dropping = sum(len(module.models) for module in survey.modules.values() if module.blocks)
    lines = [
        f'{num_names} networks of timm {timm.__version__} have no drop path. {num_dropping} of them have residual'
        " blocks all the same, which `'ResidualBlock'` finds, and leave out what they drop.",
        '',
        '| module | names | blocks |',
        '| --- | --- | --- |',
    ]
    for name, module in survey.modules.items():
        blocks = ', '.join(sorted(module.blocks)) or f'none: {UNFIT_MODULES.get(name, "these have no shortcuts")}'
        lines.append(f'| {name} | {len(module.models)} | {blocks} |')
    return '\n'.join(lines)


def _create(model_name: str) -> nn.Module:
    with torch.device('meta'):
        try:
            return timm.create_model(model_name, drop_path_rate=0.1)
        except TypeError:  # no such argument
            return timm.create_model(model_name)
