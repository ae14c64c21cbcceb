"""Runs of the small script under the launcher, and what they leave."""

import argparse
import csv
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import yaml
from forks import run_python
from hub import free_port

SCRIPT = Path(__file__).parent / 'small_train.py'
VIT = ('--model', 'test_vit', '--model-kwargs', 'img_size=32', '--drop-path', 0.4)


def run(options, *args, ranks=1, env=None):
    """The small script under the launcher, a process of its own: exit status and what it said.

    Several ranks are told of one another as by torchrun, and say it one after the other.
    """
    command = ['-m', 'timm_stochdepth.run', *options, SCRIPT, *args]
    env = {**(env or os.environ), 'OMP_NUM_THREADS': '1'}
    group = dict(WORLD_SIZE=str(ranks), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    with ThreadPoolExecutor(ranks) as pool:
        envs = [dict(group, RANK=str(rank), LOCAL_RANK=str(rank)) if ranks > 1 else {} for rank in range(ranks)]
        results = list(pool.map(lambda of_rank: run_python(*command, env={**env, **of_rank}), envs))
    return max(r.returncode for r in results), ''.join(r.stdout + r.stderr for r in results)


def train(options, *args, **kwargs):
    status, text = run(options, *args, **kwargs)
    assert status == 0, text[-5000:]
    return text


def args_of(folder):
    """What a run has noted of its arguments: in args.yaml, and the same in its checkpoint."""
    noted = yaml.safe_load((folder / 'args.yaml').read_text())
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(folder / 'last.pth.tar', weights_only=True)
    assert vars(checkpoint['args']).get('stochastic_depth') == noted.get('stochastic_depth')
    return noted


def summary(folder):
    """The rows of a summary, each by the header above it."""
    rows, header = [], []
    for row in csv.reader((folder / 'summary.csv').open(newline='')):
        if row[0] == 'epoch':
            header = row
        else:
            assert len(row) == len(header)
            rows.append(dict(zip(header, row)))
    return rows


def rates(folder):
    return [float(row['train_drop_rate']) for row in summary(folder)]


def said_of_network(text):
    return re.findall(r'.* has stochastic depth in .*', text)


NOTED = dict(
    stochastic_method='sample',
    drop_distribution=None,
    drop_warmup=0.0,
    drop_schedule=None,
    use_same_gpu_seed=True,
    scale_by_keep=True,
    skip_dropped=False,
)
