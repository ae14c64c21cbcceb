"""The model card of a repository: its words are in card.md."""
import re
from math import isclose
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn

from ..checkpoints.names import strip_module_name
from ..inspection import blocks_by_name, drop_paths
from ..settings import DISTRIBUTIONS, Settings, depth_shares
from .named_models import is_stochastic
from .record import TrainingRecord

__all__ = ['PICTURE', 'code_blocks', 'create_card', 'for_repository', 'full_drop_rates', 'read_card', 'repo_id_of']

PICTURE = 'drop_rates.png'

_TEMPLATE = Path(__file__).with_name('card.md')

_ARGUMENTS = (
    'epochs', 'batch_size', 'opt', 'lr', 'weight_decay', 'sched', 'warmup_epochs', 'drop_path', 'model_kwargs',
    'img_size', 'input_size', 'smoothing', 'mixup', 'cutmix', 'aa', 'amp', 'seed',
)


def create_card(model: Any, repo_id: str, record: TrainingRecord, has_picture: bool = False) -> str:
    """Write the card of a model: what it is, how it was trained, how to use it. What is not known is not in it.

    Args:
        model: The network as it is pushed.
        repo_id: Repository that it is pushed to.
        record: What is known of its training.
        has_picture: Whether a picture of the drop rates lies beside the card; a table takes its place otherwise.
    """
    # of the stochastic depth that the network has, or had when it was folded
    method = next((d.settings for _, d in drop_paths(model)), getattr(model, 'folded_settings', None))
    stochastic, title = is_stochastic(model), repo_id.split('/')[-1]
    rates = full_drop_rates(model) if stochastic else getattr(model, 'folded_drop_rates', {})
    distribution = _distribution(method, rates) if method else None
    data = ModelCardData(
        base_model=record.base_model,
        eval_results=_eval_results(record),
        library_name='timm',
        license=record.license or record.base_license,
        model_name=title,
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', *(['stochastic-depth'] if method else [])],
    )
    args = {name: _without_paths(record.args.get(name)) for name in _ARGUMENTS}
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        title=title,
        repo_id=repo_id,
        num_classes=model.num_classes,
        architecture=model.pretrained_cfg['architecture'],
        num_parameters=f'{sum(p.numel() for p in model.parameters()) / 1e6:.1f}',
        stochastic=stochastic,
        method=method,
        distribution=distribution,
        # a block may have been given a rate of its own
        rate=max([method.drop_rate or 0., *([] if distribution else rates.values())]) if method else None,
        rates=rates,
        picture=PICTURE if has_picture else None,
        data_name=_data_name(record.args),
        settings={name: value for name, value in args.items() if value not in (None, [], {}, '', False)},
        results=record.results,
        epoch=record.epoch,
        origin=_origin(record),
    )
    return re.sub(r'\n{3,}', '\n\n', str(card)).rstrip() + '\n'


def _distribution(settings: Settings, rates: Dict[str, float]) -> Optional[str]:
    """How the rate is spread over the blocks, if their rates bear it out."""
    rate = (settings.drop_rate or 0.) * settings.share(1.)
    for name in DISTRIBUTIONS:
        spread = [rate * share for share in depth_shares(len(rates), name)]
        if all(isclose(one, other, abs_tol=1e-6) for one, other in zip(rates.values(), spread)):
            return name
    return None


def _origin(record: TrainingRecord) -> str:
    """Where the weights come from and how they are licensed, as far as it is known; empty if nothing is."""
    base, said = record.base_model, []
    if record.license:
        said.append(f'The weights are licensed as `{record.license}`.')
    if base:
        is_news = record.base_license and not record.license
        licensed = f', which is licensed as `{record.base_license}`' if is_news else ''
        said.append(f'Training started from [{base}](https://huggingface.co/{base}){licensed}.')
    elif record.args.get('resume'):
        pass  # whatever that checkpoint's own run started from
    elif record.starts_from_file:
        said.append('Training started from a file of weights.')
    elif record.args.get('pretrained'):
        said.append('Training started from pretrained weights; which ones was not recorded.')
    elif record.starts_from_scratch:
        said.append('It was trained from scratch.')
    return ' '.join(said)


# never publish local paths: a name alone, whichever system wrote it
_PATH = re.compile(r'[/\\]|^~|^[A-Za-z]:')
# timm's prefixes of datasets that have a public name
_DATASETS = ('hfds/', 'hfids/', 'tfds/', 'torch/')


def _data_name(args: Dict[str, Any]) -> Optional[str]:
    """Name of the dataset, or of the folder that it lay in."""
    dataset = str(args.get('dataset') or '')
    if dataset.startswith(_DATASETS) and re.fullmatch(r'\w+/([\w.-]+/)?[\w.-]+', dataset):
        return dataset
    path = str(dataset or args.get('data_dir') or args.get('data') or '')
    if '://' in path or path.startswith('pipe:'):  # webdataset's: never publish passwords, tokens and command lines
        address = re.search(r'''\w+://[^/\s'"]*(/[^?#;\s'"]*)?''', path)
        path = address[1] or '' if address else ''
    name = re.sub('^[A-Za-z]:', '', re.split(r'[\\/]', path.rstrip('\\/'))[-1])
    return re.sub(r'[`\s]+', ' ', name).strip() if re.search(r'\w', name) else None


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_paths(v) for k, v in value.items() if _without_paths(v) is not None}
    if isinstance(value, (list, tuple)):
        return [_without_paths(v) for v in value if _without_paths(v) is not None]
    return None if isinstance(value, str) and _PATH.search(value) else value


def _eval_results(record: TrainingRecord) -> 'List[EvalResult] | None':
    name = _data_name(record.args)
    if 'top1' not in record.results or name is None:
        return None
    # the id of a public dataset on the Hub, or the kind of a folder's
    dataset_type = name.partition('/')[2] if name.startswith(_DATASETS) else 'imagefolder'
    return [
        EvalResult(
            task_type='image-classification', dataset_type=dataset_type, dataset_name=name, metric_type='accuracy',
            metric_name=f'{metric} in %', metric_value=value)
        for metric, value in record.results.items() if metric in ('top1', 'top5')]


def full_drop_rates(model: nn.Module) -> Dict[str, float]:
    """Drop rate of each stochastic block at the end of the warm-up, for which a file's weights are, by module name."""
    return {strip_module_name(name): drop_path.full_drop_prob for name, drop_path in blocks_by_name(model)}


def code_blocks(card: str) -> List[str]:
    """The Python programs of a card."""
    return re.findall(r'^```python\n(.*?)^```', card, flags=re.MULTILINE | re.DOTALL)


def repo_id_of(card: str) -> str:
    """The repository that the programs of a card load, empty if they load none."""
    found = re.search(r"'hf-hub:([^']+)'", '\n'.join(code_blocks(card)))
    return found[1] if found else ''


def for_repository(card: str, repo_id: str) -> str:
    """Let the programs of a card load another repository."""
    old = repo_id_of(card)
    return card.replace(f"'hf-hub:{old}'", f"'hf-hub:{repo_id}'") if old else card


def read_card(folder: Path) -> 'Tuple[Optional[str], Optional[str]]':
    """Read the model card of a folder and the licence that it states; None for what is not there.

    A README.md that does not begin with metadata, as the Hub reads it, is about something else.
    """
    path = folder / 'README.md'
    text = path.read_text(encoding='utf-8', errors='replace') if path.is_file() else ''
    if not text.startswith('---'):
        return None, None
    try:
        license = ModelCard(text, ignore_metadata_errors=True).data.to_dict().get('license')
    except Exception:  # whatever YAML's reader raises
        return None, None
    return text, license if isinstance(license, str) else None
