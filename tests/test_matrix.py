"""Every shape of checkpoint people bring: through the whole job, or a clear no."""
import json
from pathlib import Path

import pytest

from whisper_nb.files import hash_file, list_files
from whisper_nb.verify import verify

from matrix import REFUSED, SHAPES, TAKEN, bring, run_shape

FROM_A_HUB = ['published', 'shards', 'saved by transformers 4', 'no tokenizer', 'pickle in shards, allowed', 'CTranslate2, nothing copied']
WITH_THE_NETWORK_DENIED = ['no generation_config.json', 'pickle, allowed']  # left in Transformers format; the converted ones all are


def models_in(folder): return sorted(path.name for path in (folder/'models').glob('[!.]*'))


@pytest.mark.parametrize('name', TAKEN)
def test_goes_through(name, tmp_path):
    "Downloaded, verified, converted, compared, packed and tested offline; the archive speaks elsewhere, and so does the model left in Transformers format."
    row = run_shape(name, tmp_path, offline=name in WITH_THE_NETWORK_DENIED)
    assert row.problem is None, row.problem
    assert set(row.heard) == ({'faster-whisper'} if SHAPES[name].ctranslate2 else {'faster-whisper', 'transformers'}) and row.ok, row
    assert SHAPES[name].filled in '; '.join(row.notes)
    assert row.again == 'reused'
    for model in models_in(tmp_path): assert verify(tmp_path/'models'/model).ok
    if SHAPES[name].ctranslate2:  # taken byte for byte
        (brought, taken), = zip((tmp_path/'brought').glob('*/model.bin'), (tmp_path/'models').glob('*/model.bin'), strict=True)
        assert hash_file(brought) == hash_file(taken)


@pytest.mark.parametrize('name', FROM_A_HUB)
def test_from_a_hub(name, tmp_path):
    row = run_shape(name, tmp_path, hub=True)
    assert row.ok and SHAPES[name].filled in '; '.join(row.notes), row


@pytest.mark.parametrize('name', REFUSED)
def test_clear_no(name, tmp_path):
    "Two lines, and nothing half-made is left; a trap in the weights is not sprung."
    problem = run_shape(name, tmp_path).problem
    assert SHAPES[name].refused in problem.what and problem.advice and problem.exit_code in (1, 2), problem
    assert '\n' not in problem.what + problem.advice and 'bug' not in problem.advice
    assert not models_in(tmp_path) or problem.what.startswith('verify: '), models_in(tmp_path)  # what was brought whole stays, and is named
    assert not (tmp_path/'brought'/'sprung').exists()


def test_pickle_the_way_a_user_goes(tmp_path, whisper_nb):
    "Refused with the command that allows it; after that command prepare takes what it brought, and nothing is pickled any more."
    source = bring('pickle, allowed', tmp_path)
    refused = whisper_nb('prepare', source, '--json')
    assert refused.returncode == 2 and 'only as pickle' in refused.stderr and '--allow-pickle' in refused.stderr
    allowed = whisper_nb('download', source, '--allow-pickle')
    assert allowed.returncode == 0, allowed.stderr
    model = Path('models')/source.name
    assert 'model.safetensors' in list_files(model) and not list(model.glob('*.bin'))
    done = whisper_nb('prepare', source, '--skip-compress', '--json')
    assert done.returncode == 0, done.stderr
    assert {step['name']: step['status'] for step in json.loads(done.stdout)['steps']}['download'] == 'reused'


def test_the_trap_works(tmp_path):
    "Loaded without care, those weights do run code."
    import torch
    source = bring('malicious pickle', tmp_path)
    torch.load(source/'pytorch_model.bin', weights_only=False)
    assert (source.parent/'sprung').exists()
