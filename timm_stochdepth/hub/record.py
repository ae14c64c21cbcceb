"""Training settings and results for the model card."""
import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

import timm
from timm.models import PretrainedCfg, parse_model_name

from ..checkpoints.file import WeightsFile

__all__ = ['TrainingRecord', 'record_of_run']


@dataclass
class TrainingRecord:
    """What is known of how a network was trained.

    Attributes:
        args: Arguments of timm's train.py.
        epoch: Epoch after which the weights were saved.
        results: Validation results of these very weights, by name.
        label_names: Names of the classes, in the order of the logits.
        label_descriptions: What these names stand for.
        license: Licence of the weights, where their owner has said it.
        card: Model card that lies beside the weights already.
        assumed: What nothing said and was assumed of the network, in a sentence; such a network is not published.
    """
    args: Dict[str, Any] = field(default_factory=dict)
    epoch: Optional[int] = None
    results: Dict[str, float] = field(default_factory=dict)
    label_names: Optional[List[str]] = None
    label_descriptions: Optional[Dict[str, str]] = None
    license: Optional[str] = None
    card: Optional[str] = None
    assumed: Optional[str] = None

    def _base(self) -> Optional[PretrainedCfg]:
        if not self.args.get('pretrained') or self.starts_from_file or self.args.get('resume'):
            return None
        source, name = parse_model_name(self.args.get('model') or '')
        if source is not None:
            return PretrainedCfg(hf_hub_id=name.partition('@')[0]) if source == 'hf-hub' else None
        # which tag was the default one when the run started is known to that version of timm alone
        return timm.models.get_pretrained_cfg(name) if '.' in name else None

    @property
    def starts_from_file(self) -> bool:
        """Whether train.py was given a file of weights."""
        return bool(self.args.get('initial_checkpoint') or self.args.get('pretrained_path'))

    @property
    def starts_from_scratch(self) -> bool:
        """Whether arguments of train.py, which has all of these, say that there were no weights before."""
        names = ('pretrained', 'initial_checkpoint', 'resume')
        return all(name in self.args and not self.args[name] for name in names) and not self.starts_from_file

    @property
    def scores_ema(self) -> bool:
        """Whether train.py validated the EMA weights: where there are some, unless they are kept on the CPU."""
        return bool(self.args.get('model_ema')) and not self.args.get('model_ema_force_cpu')

    @property
    def base_model(self) -> Optional[str]:
        """Repository of the weights that training started from."""
        base = self._base()
        return base.hf_hub_id if base else None

    @property
    def base_license(self) -> Optional[str]:
        """Licence of the weights that training started from."""
        base = self._base()
        return base.license if base else None


def record_of_run(path: Path, file: WeightsFile, use_ema: bool) -> TrainingRecord:
    """Read a checkpoint's record, with the results of its summary.csv if they are those of the weights read."""
    record = TrainingRecord(args=file.args, epoch=file.epoch)
    if use_ema == record.scores_ema:
        record.results = _results(path, file)
    return record


def _results(path: Path, file: WeightsFile) -> Dict[str, float]:
    validates = file.args.get('val_split', 'validation') != ''
    if not validates or not _is_finite(file.metric):
        return {}
    name, metric = file.args.get('eval_metric') or 'top1', float(file.metric)  # type: ignore[arg-type]
    row = _summary_row(path.parent / 'summary.csv', file.epoch)
    if row is None:
        return {name: metric}
    results = {k[len('eval_'):]: float(v) for k, v in row.items() if k.startswith('eval_') and _is_finite(v)}
    return results if name in results and math.isclose(results[name], metric, rel_tol=1e-6) else {}


def _summary_row(path: Path, epoch: Optional[int]) -> Optional[Dict[str, str]]:
    """The last row of an epoch: a run that was resumed has written some twice, and the header again."""
    if not path.is_file():
        return None
    found, header = None, []
    with path.open(newline='', encoding='utf-8', errors='replace') as file:
        # a summary of train.py has short lines without a zero byte; anything else is somebody's own file
        for row in csv.reader(line for line in file if len(line) < 10_000 and '\0' not in line):
            if row and row[0] == 'epoch':
                header = row
            elif row and row[0] == str(epoch):
                found = dict(zip(header, row))
    return found


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
