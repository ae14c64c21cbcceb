"""A script like timm's train.py, of timm's own parts, with random images, for the launcher to run."""

import argparse
from collections import OrderedDict
from pathlib import Path

import torch
import yaml
from timm import utils
from timm.models import create_model, load_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import (
    ClassificationTask,
    LogitDistillationTask,
    load_task_ema_checkpoint,
    resume_task_checkpoint,
)

config_parser = argparse.ArgumentParser(add_help=False)
config_parser.add_argument('-c', '--config', default='')
parser = argparse.ArgumentParser()
for name in ('--model', '--output', '--initial-checkpoint', '--checkpoint', '--resume', '--pretrained-path'):
    parser.add_argument(name, default='')
parser.add_argument('--pretrained', action='store_true')
parser.add_argument('--drop-path', type=float)
parser.add_argument('--model-kwargs', nargs='*', default={}, action=utils.ParseKwargs)
parser.add_argument('--kd-model-name')
parser.add_argument('--model-ema', action='store_true')
parser.add_argument('--amp', action='store_true')
parser.add_argument('--sched', default='cosine')
parser.add_argument('--epochs', type=int, default=2)
parser.add_argument('--seed', type=int, default=0)

BATCHES = 2
SIZE = dict(num_classes=4)


def parse_args():
    args_config, remaining = config_parser.parse_known_args()
    if args_config.config:
        parser.set_defaults(**yaml.safe_load(Path(args_config.config).read_text()))
    args = parser.parse_args(remaining)
    return args, yaml.safe_dump(args.__dict__)


def batch(epoch, idx):
    generator = torch.Generator().manual_seed(100 * epoch + idx)
    size = 32
    return torch.randn(6, 3, size, size, generator=generator), torch.arange(6) % 4


def main():
    utils.setup_default_logging()
    args, args_text = parse_args()
    args.device = 'cpu'
    utils.init_distributed_device(args)
    utils.random_seed(args.seed, args.rank)
    factory_kwargs = {}
    if args.pretrained_path:
        factory_kwargs['pretrained_cfg_overlay'] = dict(file=args.pretrained_path, num_classes=SIZE['num_classes'])
    model = create_model(
        args.model,
        pretrained=args.pretrained,
        drop_path_rate=args.drop_path,
        checkpoint_path=args.initial_checkpoint,
        **SIZE,
        **factory_kwargs,
        **args.model_kwargs,
    )
    if args.checkpoint:
        load_checkpoint(model, args.checkpoint, False)
    if not args.epochs:
        with torch.no_grad():
            print('logits', model.eval()(batch(0, 0)[0]).tolist())
        return

    if args.kd_model_name:
        task = LogitDistillationTask(model, args.kd_model_name, device=torch.device('cpu'), verbose=False)
    else:
        task = ClassificationTask(model, verbose=False)
    model = task.get_trainable_module()
    optimizer = create_optimizer_v2(model, opt='sgd', lr=0.1)
    start_epoch = 0
    if args.resume:
        start_epoch = resume_task_checkpoint(task, args.resume, optimizer, log_info=False)
    if args.model_ema:
        task.setup_ema(decay=0.5)
        if args.resume:
            load_task_ema_checkpoint(task, args.resume)
    if args.distributed:
        task.prepare_distributed()
        model = task.get_trainable_module()
    saver = None
    if utils.is_primary(args) and args.output:
        Path(args.output).mkdir(parents=True, exist_ok=True)
        (Path(args.output) / 'args.yaml').write_text(args_text)
        dirs = dict(checkpoint_dir=args.output, recovery_dir=args.output)
        saver = utils.CheckpointSaver(model=model, optimizer=optimizer, args=args, task=task, **dirs)
    scheduler, num_epochs = create_scheduler_v2(
        optimizer, sched=args.sched, num_epochs=args.epochs, updates_per_epoch=BATCHES
    )
    if start_epoch:
        scheduler.step(start_epoch)
    best = None
    for epoch in range(start_epoch, num_epochs):
        model.train()
        for idx in range(BATCHES):
            with torch.autocast('cpu', torch.bfloat16, enabled=args.amp):
                loss = task(*batch(epoch, idx))['loss']
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            num_updates = epoch * BATCHES + idx + 1
            task.update_ema(step=num_updates)
            scheduler.step_update(num_updates=num_updates)
        if saver is not None:
            train_metrics, eval_metrics = OrderedDict(loss=loss.item()), OrderedDict(top1=float(epoch))
            path = Path(args.output) / 'summary.csv'
            utils.update_summary(epoch, train_metrics, eval_metrics, path, lr=0.1, write_header=best is None)
            best, _ = saver.save_checkpoint(epoch, metric=float(epoch))
            assert list(train_metrics) == ['loss']  # what the script goes on with is its own
        scheduler.step(epoch + 1)


if __name__ == '__main__':
    main()
