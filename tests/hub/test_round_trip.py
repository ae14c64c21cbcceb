"""From a checkpoint to the Hub and back, over HTTP: pushed to one server, served by another too."""

import argparse

import pytest
import timm
import torch
from forks import run_python
from hub import run_client
from networks import LAYERS, randomize, small_resnet
from safetensors.torch import load_file, save, save_file

import timm_stochdepth as ts

REPO_ID = 'user/digits'


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    """A checkpoint of timm's train.py, and the logits of its model on the input that `logits` takes."""
    torch.manual_seed(0)
    model = small_resnet(num_classes=10, drop_path_rate=0.3)
    args = argparse.Namespace(
        model='resnet50_sd_block',
        num_classes=10,
        drop_path=0.3,
        model_kwargs=LAYERS,
        pretrained=False,
        data_dir='digits',
    )
    path = tmp_path_factory.mktemp('checkpoint') / 'last.pth.tar'
    torch.save(dict(epoch=0, arch=args.model, state_dict=model.state_dict(), args=args, metric=90.0), path)
    return path


LOGITS = """
    import sys, timm, torch
    if sys.argv[3] == 'ours':
        import timm_stochdepth
    model = timm.create_model(sys.argv[1], pretrained=True).eval()
    assert ('timm_stochdepth' in sys.modules) == (sys.argv[3] == 'ours')
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.save(model(x).detach(), sys.argv[2])
"""


@pytest.fixture
def logits(tmp_path):
    def run(name, env, package='ours'):
        result = run_client(LOGITS, env, name, tmp_path / 'logits.pt', package)
        assert result.returncode == 0, result.stderr
        return torch.load(tmp_path / 'logits.pt')

    return run


@pytest.fixture
def command(hub_server, tmp_path):
    """Run `timm-stochdepth` against the server, with an empty cache each time: exit status and output."""

    def run(*args, token='', env=None, endpoint=None):
        env = env or hub_server.env(tmp_path / f'cache_{len(list(tmp_path.iterdir()))}', token=token)
        env |= {} if endpoint is None else {'HF_ENDPOINT': endpoint}
        result = run_python('-m', 'timm_stochdepth', *args, env=env)
        return result.returncode, result.stdout, result.stderr

    return run


def own_logits(checkpoint, plain=False):
    from timm_stochdepth.hub.load import load_model

    model, _ = load_model(checkpoint)
    model = ts.fold_stochastic_depth(model) if plain else model
    return model.eval()(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))).detach()


def one_sentence(err):
    lines = [line for line in err.splitlines() if line.startswith('timm-stochdepth ')]
    assert lines and 'Traceback' not in err and 'internal error' not in err, err
    return lines[-1]  # after what it said that it was doing


@pytest.mark.long
def test_push_create_verify_and_pull(checkpoint, command, hub_server, olah_server, logits, tmp_path):
    status, out, err = command('push', checkpoint, REPO_ID)
    assert status == 0, err
    assert f'{hub_server.endpoint}/{REPO_ID}/commit/' in out and 'model.safetensors' in out
    assert 'hf_test' not in out + err  # the token
    files = hub_server.files(REPO_ID)
    assert {'README.md', 'config.json', 'drop_rates.png', 'model.safetensors'} <= set(files)
    assert not any(b'hf_test' in content for content in files.values())
    # the files came in one commit
    assert sum('/commit/' in path for method, path in hub_server.requests if method == 'POST') == 1

    env = hub_server.env(tmp_path / 'cache')
    expected = own_logits(checkpoint)
    assert torch.equal(logits(f'hf-hub:{REPO_ID}', env), expected)
    assert torch.equal(logits(f'hf-hub:{REPO_ID}@main', env), expected)
    assert torch.equal(logits(f'hf-hub:{REPO_ID}', {**env, 'HF_HUB_OFFLINE': '1'}), expected)

    # through a Hub server that somebody else wrote
    olah = {**hub_server.env(tmp_path / 'olah_cache'), 'HF_ENDPOINT': olah_server(hub_server.root)}
    assert torch.equal(logits(f'hf-hub:{REPO_ID}', olah), expected)

    status, out, err = command('verify', REPO_ID)
    assert status == 0, out + err
    assert all(line.startswith('ok ') for line in out.splitlines())
    assert 'hash of model.safetensors' in out and 'card: 3 programs run' in out

    status, out, err = command('pull', REPO_ID, tmp_path / 'pulled')
    assert status == 0 and '%' not in err, err  # no bar off a terminal
    assert torch.equal(logits(f'local-dir:{tmp_path / "pulled"}', env), expected)

    hub_server.corrupt('model.safetensors', offset=1_000_000)
    status, out, err = command('verify', REPO_ID)
    assert status == 1
    assert "FAILED  hash of model.safetensors: differs from the Hub's" in out
    one_sentence(err)


def test_plain_needs_timm_alone(checkpoint, command, hub_server, logits, tmp_path):
    status, _, err = command('push', checkpoint, REPO_ID, '--plain')
    assert status == 0, err
    got = logits(f'hf-hub:{REPO_ID}', hub_server.env(tmp_path / 'cache'), package='timm')
    assert torch.equal(got, own_logits(checkpoint, plain=True))
    torch.testing.assert_close(got, own_logits(checkpoint), rtol=1e-4, atol=1e-4)
    assert b'a plain timm model' in hub_server.files(REPO_ID)['README.md']


@pytest.mark.long
def test_branch_private_and_pull_request(checkpoint, command, hub_server):
    status, _, err = command('push', checkpoint, REPO_ID, '--private', '--revision', 'ema')
    assert status == 0, err
    assert hub_server.settings(REPO_ID)['private']
    assert 'model.safetensors' in hub_server.files(REPO_ID, 'ema')
    assert 'model.safetensors' not in hub_server.files(REPO_ID)
    status, out, err = command('push', checkpoint, REPO_ID, '--create-pr')
    assert status == 0, err
    assert 'discussions' in out
    # without its token nobody sees a private repository
    status, _, err = command('pull', REPO_ID, 'x', token=None)
    assert status == 1 and 'does not exist, or is private' in one_sentence(err)


PUSHES = """
    import sys
    from pathlib import Path
    import timm_stochdepth as ts
    from timm_stochdepth.hub.errors import explain
    from timm_stochdepth.hub.load import load_model
    model, record = load_model(Path(sys.argv[1]))
    for _ in range(int(sys.argv[3])):
        try:
            ts.push_to_hub(model, sys.argv[2], record=record)
            print('pushed')
        except Exception as e:
            print(explain(e, sys.argv[2]))
"""


def test_a_push_that_fails_commits_nothing(checkpoint, hub_server, tmp_path):
    messages = {
        'refuses this login': dict(path='/api/repos/create', method='POST', status=401),
        'may not do that': dict(path='/api/repos/create', method='POST', status=403),
        'HTTP status 404': dict(path='/preupload/', method='POST', status=404),
        'HTTP status 400': None,  # the server got other bytes than were announced
        'the Hub failed': dict(path='/commit/', method='POST', status=500),
    }
    for fault in filter(None, messages.values()):
        hub_server.fail(**fault, times=1)
    altered = hub_server.corrupt('/lfs-store/', offset=1000, method='PUT', times=1)
    env = hub_server.env(tmp_path / 'cache')
    result = run_client(PUSHES, env, checkpoint, REPO_ID, len(messages))
    assert result.returncode == 0, result.stderr
    for line, message in zip(result.stdout.splitlines(), messages):
        assert message in line
    assert altered.hits and 'pushed' not in result.stdout
    assert 'config.json' not in hub_server.files(REPO_ID)


def test_an_upload_that_breaks_off_commits_nothing(checkpoint, command, hub_server):
    hub_server.cut(path='/lfs-store/', after=1_000_000, method='PUT')
    status, _, err = command('push', checkpoint, REPO_ID)
    assert status == 1
    one_sentence(err)
    hub_server.clear_faults()
    assert 'config.json' not in hub_server.files(REPO_ID)


@pytest.fixture
def repository(checkpoint, hub_server, tmp_path):
    """A repository on the server with a small file in place of the weights."""
    hub_server.add_repository(
        REPO_ID, {'config.json': b'{"architecture": "resnet50_sd_block"}', 'model.safetensors': b'x' * 2_000_000}
    )
    return tmp_path / 'pulled'


PULLS = """
    import sys
    from pathlib import Path
    from timm_stochdepth.hub.errors import explain
    from timm_stochdepth.hub.pull import pull
    for _ in range(int(sys.argv[3])):
        try:
            pull(sys.argv[1], Path(sys.argv[2]))
            print('pulled')
        except Exception as e:
            print(explain(e, sys.argv[1]))
"""


def test_a_pull_that_the_hub_refuses(repository, hub_server, tmp_path):
    messages = {401: 'refuses this login', 403: 'may not do that', 404: 'HTTP status 404', 500: 'the Hub failed'}
    for status in messages:
        hub_server.fail(method='GET', path='/api/models/', status=status, times=1)
    hub_server.fail(method='GET', path='/api/models/', status=429, headers={'Retry-After': '0'})
    env = hub_server.env(tmp_path / 'cache')
    result = run_client(PULLS, env, REPO_ID, repository, 5)
    assert result.returncode == 0, result.stderr
    for line, message in zip(result.stdout.splitlines(), [*messages.values(), 'fewer requests']):
        assert message in line
    assert 'pulled' not in result.stdout and not (repository / 'model.safetensors').exists()


def test_a_pull_that_breaks_off_goes_on(repository, command, hub_server):
    hub_server.cut(path='model.safetensors', after=500_000)
    status, _, err = command('pull', REPO_ID, repository)
    assert status == 1
    one_sentence(err)
    assert not (repository / 'model.safetensors').exists()
    hub_server.clear_faults()
    status, _, err = command('pull', REPO_ID, repository)
    assert status == 0, err
    assert (repository / 'model.safetensors').read_bytes() == b'x' * 2_000_000


def test_a_pull_of_altered_bytes_is_refused(repository, command, hub_server):
    hub_server.corrupt('model.safetensors', offset=1000)
    status, _, err = command('pull', REPO_ID, repository)
    assert status == 1
    one_sentence(err)
    assert not (repository / 'model.safetensors').exists()


def test_missing_and_gated_repositories(command, hub_server, tmp_path):
    status, _, err = command('pull', 'user/missing', tmp_path / 'x')
    assert status == 1 and 'user/missing does not exist, or is private' in one_sentence(err)
    hub_server.add_repository('user/gated', {'config.json': b'{}'}, gated=True)
    hub_server.add_token('hf_stranger')
    status, _, err = command('pull', 'user/gated', tmp_path / 'x', token='hf_stranger')
    assert status == 1 and 'gated' in one_sentence(err)
    status, out, err = command('verify', 'user/missing')
    assert status == 1 and 'user/missing does not exist, or is private' in one_sentence(err) and out == ''


def test_pretrained_tags_come_from_timms_repository(hub_server, tmp_path, logits):
    torch.manual_seed(0)
    plain = randomize(timm.create_model('resnet50')).eval()
    hub_server.add_repository('timm/resnet50.a1_in1k', {'model.safetensors': save(plain.state_dict())})
    env = hub_server.env(tmp_path / 'cache')
    expected = logits('resnet50.a1_in1k', env, package='timm')
    for name in ('resnet50_sd_sample.a1_in1k', 'resnet50_sd_block.a1_in1k'):
        got = logits(name, env)
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    code = """
        import sys, timm, timm_stochdepth
        timm.create_model('resnet50_sd_block', pretrained=True, cache_dir=sys.argv[1], num_classes=7, in_chans=1)
    """
    assert run_client(code, env, tmp_path / 'elsewhere').returncode == 0
    assert list((tmp_path / 'elsewhere').rglob('model.safetensors'))


def test_a_pushed_model_trains_on_with_other_classes_and_channels(checkpoint, tmp_path):
    from timm_stochdepth.hub.folder import write_folder
    from timm_stochdepth.hub.load import load_model

    model, record = load_model(checkpoint)
    write_folder(model, tmp_path, REPO_ID, record)
    other = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=7, in_chans=1)
    assert other(torch.randn(2, 1, 64, 64)).shape == (2, 7)
    assert torch.equal(other.layer4[0].bn3.weight, model.layer4[0].bn3.weight)
    weights = load_file(tmp_path / 'model.safetensors')
    save_file(weights, tmp_path / 'again.safetensors')  # without the metadata
    with pytest.warns(UserWarning, match='do not say whether they were trained with stochastic depth'):
        timm.create_model(
            'resnet50_sd_block',
            pretrained=True,
            num_classes=10,
            pretrained_cfg_overlay=dict(file=str(tmp_path / 'again.safetensors'), num_classes=10),
            **LAYERS,
        )


@pytest.mark.parametrize(
    'name, options',
    [
        pytest.param('test_vit', ['--keep-stochastic-depth'], marks=pytest.mark.long),
        pytest.param('shvit_s1_sd_sample', [], marks=pytest.mark.families),
    ],
)
def test_networks_of_any_family_are_pushed_verified_and_pulled(name, options, command, hub_server, tmp_path):
    torch.manual_seed(0)
    if '_sd_' in name:
        model = timm.create_model(name, num_classes=10, drop_path_rate=0.3)
    else:
        model = timm.create_model(name, num_classes=10)
        ts.apply_stochastic_depth(model, 'sample', 'DropPath', 0.3, skip_dropped=True)
    args = dict(model=name, num_classes=10, drop_path=0.3 if '_sd_' in name else None, model_kwargs={})
    torch.save(dict(arch=name, state_dict=randomize(model).state_dict(), args=args), tmp_path / 'last.pth.tar')
    status, _, err = command('push', tmp_path / 'last.pth.tar', REPO_ID, *options)
    assert status == 0, err
    status, out, err = command('verify', REPO_ID)
    assert status == 0 and 'card: 3 programs run' in out, out + err
    status, _, err = command('pull', REPO_ID, tmp_path / 'pulled')
    assert status == 0, err
    pulled = timm.create_model(f'local-dir:{tmp_path / "pulled"}', pretrained=True).eval()
    assert pulled.pretrained_cfg['architecture'] == f'{name.partition("_sd_")[0]}_sd_sample'
    assert ts.drop_rates(pulled) == ts.drop_rates(model)
    x = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(pulled(x), model.eval()(x))
    status, out, err = command('show', f'hf-hub:{REPO_ID}')
    assert status == 0 and '0.3000' in out, err
