"""The model card of a repository."""
import re
from math import isclose
from typing import Any, Dict, List, Optional

from huggingface_hub import EvalResult, ModelCardData
from torch import nn

from ..checkpoints.names import strip_module_name
from ..inspection import blocks_by_name, drop_paths
from ..settings import DISTRIBUTIONS, Settings, depth_shares
from .named_models import is_stochastic
from .record import TrainingRecord
from .signed_card import for_repository, sign

__all__ = ['PICTURE', 'adopt_card', 'code_blocks', 'create_card', 'example_code', 'full_drop_rates', 'repo_id_of']

PICTURE = 'drop_rates.png'

_ARGUMENTS = (
    'epochs', 'batch_size', 'opt', 'lr', 'weight_decay', 'sched', 'warmup_epochs', 'drop_path', 'model_kwargs',
    'img_size', 'input_size', 'smoothing', 'mixup', 'cutmix', 'aa', 'amp', 'seed',
)

_PAPER = '[Huang et al. 2016](https://arxiv.org/abs/1603.09382)'

_CITE_PAPER = '''@inproceedings{huang2016deep,
  title = {Deep Networks with Stochastic Depth},
  author = {Huang, Gao and Sun, Yu and Liu, Zhuang and Sedra, Daniel and Weinberger, Kilian Q.},
  booktitle = {European Conference on Computer Vision},
  year = {2016},
}
'''
_CITE_TIMM = '''@misc{rw2019timm,
  author = {Ross Wightman},
  title = {PyTorch Image Models},
  year = {2019},
  howpublished = {\\url{https://github.com/huggingface/pytorch-image-models}},
}'''


def example_code(repo_id: str, stochastic: bool) -> List[str]:
    """Three short programs that use a repository: classify, extract features, train on.

    Args:
        repo_id: The repository.
        stochastic: Whether it holds a network with stochastic depth, that asks for this package.
    """
    imports = 'import timm\nimport torch\n' + ('import timm_stochdepth\n' if stochastic else '')
    create = f"timm.create_model('hf-hub:{repo_id}', pretrained=True"
    rate = ', drop_path_rate=0.1' if stochastic else ''  # another rate, from the same function
    return [
        f'''{imports}from PIL import Image

model = {create}).eval()
config = timm.data.resolve_data_config(model.pretrained_cfg)
transform = timm.data.create_transform(**config, is_training=False)
image = Image.new('RGB', (256, 256))  # your picture
probabilities = model(transform(image).unsqueeze(0)).softmax(dim=1)
print(probabilities.topk(min(5, model.num_classes)))
''',
        f'''{imports}
model = {create}, num_classes=0).eval()
features = model(torch.randn(1, *model.pretrained_cfg['input_size']))
print(features.shape)
''',
        f'''{imports}
model = {create}, num_classes=10{rate}).train()
loss = model(torch.randn(2, *model.pretrained_cfg['input_size'])).square().mean()
loss.backward()
''',
    ]


def code_blocks(card: str) -> List[str]:
    """The Python programs of a card."""
    return re.findall(r'^```python\n(.*?)^```', card, flags=re.MULTILINE | re.DOTALL)


def repo_id_of(card: str) -> str:
    """The repository that the programs of a card load, empty if they load none."""
    found = re.search(r"'hf-hub:([^']+)'", '\n'.join(code_blocks(card)))
    return found[1] if found else ''


def adopt_card(card: str, repo_id: str) -> str:
    """A card that lies beside the weights already, for the repository that it is pushed to."""
    return for_repository(card, repo_id_of(card), repo_id)


def full_drop_rates(model: nn.Module) -> Dict[str, float]:
    """Drop rate of each stochastic block at the end of the warm-up, for which a file's weights are, by module name."""
    return {strip_module_name(name): drop_path.full_drop_prob for name, drop_path in blocks_by_name(model)}


def _trained_settings(model: Any) -> Optional[Settings]:
    """The settings of stochastic depth that a network has, or had when it was folded; None for others."""
    return next((drop_path.settings for _, drop_path in drop_paths(model)), getattr(model, 'folded_settings', None))


def create_card(
        model: Any,
        repo_id: str,
        record: TrainingRecord,
        has_picture: bool = False,
) -> str:
    """The card of a model: what it is, how it was trained, how to use it. What is not known is not in it.

    Args:
        model: The network as it is pushed.
        repo_id: Repository that it is pushed to.
        record: What is known of its training.
        has_picture: Whether a picture of the drop rates lies beside the card; a table takes its place otherwise.
    """
    stochastic, settings = is_stochastic(model), _trained_settings(model)
    data = ModelCardData(
        base_model=record.base_model,
        eval_results=_eval_results(repo_id, record),
        library_name='timm',
        license=record.license or record.base_license,
        model_name=repo_id.split('/')[-1],
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', *(['stochastic-depth'] if settings else [])],
    )
    sections = [
        f'---\n{data.to_yaml()}\n---\n# {repo_id.split("/")[-1]}',
        _description(model, settings, has_picture),
        _training(record),
        '## How to use it\n\n' + _requirement(stochastic) + '\n\n' + '\n\n'.join(
            f'{title}\n\n```python\n{code}```' for title, code in zip(
                ('Classify an image:', 'Extract features:', 'Train it on ten classes of your own:'),
                example_code(repo_id, stochastic))),
        _origin(record),
        f'## Citation\n\n```bibtex\n{_CITE_PAPER if settings else ""}{_CITE_TIMM}\n```',
    ]
    return sign('\n\n'.join(section for section in sections if section) + '\n')


def _description(model: Any, settings: Optional[Settings], has_picture: bool) -> str:
    architecture = model.pretrained_cfg['architecture']
    num_parameters = sum(p.numel() for p in model.parameters())
    paragraphs = [
        f'An image classifier with {model.num_classes} classes, timm architecture `{architecture}`,'
        f' {num_parameters / 1e6:.1f} million parameters.']
    if settings is None:
        return paragraphs[0]
    if is_stochastic(model):
        paragraphs.append(f'It has stochastic depth ({_PAPER}): in training, residual branches are dropped at random.')
        rates = full_drop_rates(model)
    else:
        in_weights = '' if settings.scale_by_keep else ', with the drop rates in its weights'
        paragraphs.append(
            f'It was trained with stochastic depth ({_PAPER}): residual branches were dropped at random. It is a plain'
            f' timm model{in_weights}, that needs nothing but timm.')
        rates = model.folded_drop_rates
    paragraphs.append(_method(settings, rates))
    if has_picture:
        return '\n\n'.join([*paragraphs, f'![drop rate of each block]({PICTURE})'])
    rows = [f'| {name} | {rate:.4g} |' for name, rate in rates.items()]
    return '\n\n'.join([*paragraphs, '\n'.join(['| block | drop rate |', '| --- | --- |', *rows])])


def _method(settings: Settings, rates: Dict[str, float]) -> str:
    """How branches are dropped, as far as the settings say it and the rates bear it out."""
    full_rate = (settings.drop_rate or 0.) * settings.share(1.)
    fitting = [
        name for name in DISTRIBUTIONS
        if all(isclose(rate, full_rate * scale, abs_tol=1e-6)
               for rate, scale in zip(rates.values(), depth_shares(len(rates), name)))]
    spread = f'with {fitting[0]} distribution' if fitting else 'at the most'
    rate = settings.drop_rate or 0.
    if not fitting:
        rate = max(rate, *rates.values())  # a block may have been given a rate of its own
    text = f'Method `{settings.stochastic_method}`, rate {rate:.4g} {spread} over {len(rates)} blocks'
    text += ', the branch divided by its keep probability in training' if settings.scale_by_keep else (
        ', the branch scaled at inference')
    if settings.skip_dropped:
        text += ', and computed for the samples that kept it alone'
    if settings.schedule:
        points = ', '.join(f'{share:g} at {progress:g}' for progress, share in settings.schedule)
        return f'{text}. Share of the rate over the progress of training: {points}. Drop rate of each block at its end:'
    return f'{text}. Drop rate of each block:'


def _requirement(stochastic: bool) -> str:
    return 'It needs the packages timm and timm_stochdepth.' if stochastic else 'It needs the package timm.'


def _training(record: TrainingRecord) -> str:
    lines = ['## How it was trained', '']
    shown = {name: _without_paths(record.args.get(name)) for name in _ARGUMENTS}
    settings = {name: value for name, value in shown.items() if value not in (None, [], {}, '', False)}
    if not settings and not record.results:
        return ''
    data_name = _data_name(record.args)
    if data_name:
        lines += [f'Data: `{data_name}`.', '']
    if settings:
        lines += ['| setting | value |', '| --- | --- |', *(f'| {k} | {v} |' for k, v in settings.items()), '']
    if record.results:
        epoch = f' after epoch {record.epoch}' if record.epoch is not None else ''
        lines += [f'Results on the validation data{epoch}:', '', '| metric | value |', '| --- | --- |']
        lines += [f'| {k} | {v:.4g} |' for k, v in record.results.items()]
    return '\n'.join(lines).rstrip()


# where something lies on somebody's disk is nobody's business: a name alone is published, whichever system wrote it
_PATH = re.compile(r'[/\\]|^~|^[A-Za-z]:')
# timm's prefixes of datasets that have a public name
_DATASETS = ('hfds/', 'hfids/', 'tfds/', 'torch/')


def _data_name(args: Dict[str, Any]) -> Optional[str]:
    """Name of the dataset, or of the folder that it lay in."""
    dataset = str(args.get('dataset') or '')
    public = dataset.startswith(_DATASETS) and re.fullmatch(r'\w+/([\w.-]+/)?[\w.-]+', dataset)
    if public:
        return dataset
    place = str(dataset or args.get('data_dir') or args.get('data') or '')
    name = re.sub('^[A-Za-z]:', '', re.split(r'[\\/]', place.rstrip('\\/'))[-1])
    return name if re.search(r'\w', name) else None


def _dataset_id(args: Dict[str, Any]) -> str:
    """What the Hub calls it: the id of a public dataset there, or the kind of a folder's."""
    name = str(_data_name(args))
    return name.partition('/')[2] if name.startswith(_DATASETS) else 'imagefolder'


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_paths(v) for k, v in value.items() if _without_paths(v) is not None}
    if isinstance(value, (list, tuple)):
        return [_without_paths(v) for v in value if _without_paths(v) is not None]
    return None if isinstance(value, str) and _PATH.search(value) else value


def _origin(record: TrainingRecord) -> str:
    """Where the weights come from and how they are licensed, as far as it is known; empty if nothing is."""
    base, args = record.base_model, record.args
    lines = []
    if record.license:
        lines.append(f'The weights are licensed as `{record.license}`.')
    if base:
        lines.append(f'Training started from [{base}](https://huggingface.co/{base}).')
        if record.base_license and not record.license:
            lines[-1] = f'{lines[-1][:-1]}, which is licensed as `{record.base_license}`.'
    elif args.get('resume'):
        pass  # whatever that checkpoint's own run started from
    elif record.starts_from_file:
        lines.append('Training started from a file of weights.')
    elif args.get('pretrained'):
        lines.append('Training started from pretrained weights; which ones was not recorded.')
    elif record.starts_from_scratch:
        lines.append('It was trained from scratch.')
    return f'## Licence and origin\n\n{" ".join(lines)}' if lines else ''


def _eval_results(repo_id: str, record: TrainingRecord) -> 'List[EvalResult] | None':
    name = _data_name(record.args)
    if 'top1' not in record.results or name is None:
        return None
    return [
        EvalResult(
            task_type='image-classification',
            dataset_type=_dataset_id(record.args),
            dataset_name=name,
            metric_type='accuracy',
            metric_name=f'{metric} in %',
            metric_value=value,
        )
        for metric, value in record.results.items() if metric in ('top1', 'top5')
    ]
