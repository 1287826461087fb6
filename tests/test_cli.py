"""What bad input gets, from outside: one line of what, one of what to do, the right exit code, nothing half-made, nothing lost."""
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from whisper_nb.audio import default_clip
from whisper_nb.models import DEMO_DIR

from faulty import faulty_hub, make_checkpoint

REPOSITORY = 'someone/whisper'


def two_lines(done, code):
    "What and what to do, as the command or a failed step shows them."
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert 'Traceback' not in done.stderr
    lines = done.stderr.splitlines()
    place = next(number for number, line in enumerate(lines) if '❌' in line)
    assert lines[place + 1].lstrip().startswith('→ ') and len(lines[place + 1].strip()) > 4
    return lines[place], lines[place + 1]


def final_names(directory='models'):
    "Directories and files that a user would take for finished."
    return sorted(path.name for path in Path(directory).glob('[!.]*') if not path.name.startswith('prepare-')) if Path(directory).is_dir() else []


@pytest.fixture
def hub(tmp_path):
    "A Hub with one checkpoint that can be told to misbehave: its environment and its faults."
    make_checkpoint(tmp_path / 'hub' / 'someone_whisper')
    with faulty_hub(tmp_path / 'hub') as (endpoint, faults): yield dict(HF_ENDPOINT=endpoint), faults


def test_unknown_model(whisper_nb):
    what, advice = two_lines(whisper_nb('prepare', 'larg-v3'), 2)
    assert "'larg-v3'" in what and 'openai/whisper-large-v3' in advice
    assert final_names() == []


def test_unknown_repository_names_the_near_ones(hub, whisper_nb):
    what, advice = two_lines(whisper_nb('prepare', 'openai/whisper-large-v3-trubo', **hub[0]), 2)
    assert 'not found' in what and 'openai/whisper-large-v3-turbo' in advice


def test_hub_out_of_reach(whisper_nb):
    what, advice = two_lines(whisper_nb('prepare', REPOSITORY, HF_ENDPOINT='http://127.0.0.1:9'), 1)
    assert 'could not be reached' in what and 'HF_ENDPOINT' in advice
    assert final_names() == []


@pytest.mark.parametrize('status, headers, code, words', [
    (401, {'X-Error-Code': 'RepoNotFound'}, 2, 'private'),
    (403, {'X-Error-Code': 'GatedRepo'}, 1, 'gated'),
    (403, {}, 1, 'refuses to read'),
    (404, {'X-Error-Code': 'RepoNotFound'}, 2, 'not found'),
    (404, {'X-Error-Code': 'RevisionNotFound'}, 2, 'revision'),
    (429, {'Retry-After': '9999'}, 1, 'wait'),
    (503, {'Retry-After': '0'}, 1, '503')])
def test_refusals_of_the_hub(hub, whisper_nb, status, headers, code, words):
    hub[1].add('/revision/', *[('status', status, headers)] * 20)
    what, advice = two_lines(whisper_nb('prepare', REPOSITORY, **hub[0]), code)
    assert words in what, what
    assert final_names() == []


def test_wrong_bytes_from_the_hub(hub, whisper_nb):
    hub[1].add('model.safetensors', *[('wrong',)] * 20)
    what, advice = two_lines(whisper_nb('prepare', REPOSITORY, **hub[0]), 1)
    assert 'model.safetensors' in what
    assert final_names() == []
    hub[1].rules.clear()  # and once the Hub is well again:
    assert whisper_nb('prepare', REPOSITORY, '--skip-test', **hub[0]).returncode == 0
    assert final_names() == ['someone_whisper', 'someone_whisper-ct2-float16']


def test_missing_directory(whisper_nb):
    for words in (('verify', 'nowhere'), ('convert', 'nowhere'), ('test', 'nowhere'), ('pack', 'nowhere'), ('unpack', 'nowhere.tar.gz'),
                  ('transcribe', 'nowhere.wav', '--model', 'nowhere'), ('mirror', '--models-dir', 'nowhere')):
        two_lines(whisper_nb(*words), 2)


def test_not_a_whisper_model(tmp_path, whisper_nb):
    (tmp_path / 'bert').mkdir()
    (tmp_path / 'bert' / 'config.json').write_text(json.dumps({'model_type': 'bert'}))
    what, _ = two_lines(whisper_nb('prepare', tmp_path / 'bert'), 2)
    assert 'bert' in what and final_names() == []


@pytest.mark.parametrize('damage', ['cut', 'flip'])
def test_damaged_file(tmp_path, whisper_nb, damage):
    "verify finds it and says how to mend it; prepare from that directory refuses."
    assert whisper_nb('download', 'demo').returncode == 0
    weights = tmp_path / 'models' / 'demo' / 'model.safetensors'
    data = bytearray(weights.read_bytes())
    if damage == 'cut': del data[-1000:]
    else: data[-1000] ^= 1
    weights.write_bytes(data)
    done = whisper_nb('verify', 'models/demo')
    assert done.returncode == 1 and 'model.safetensors' in done.stdout and '→' in done.stdout
    shutil.move('models/demo', 'damaged')
    two_lines(whisper_nb('prepare', 'damaged'), 1)
    assert final_names() == []


@pytest.mark.parametrize('option', ['--outputs-dir', '--models-dir'])
def test_unwritable_directory(tmp_path, whisper_nb, option):
    (tmp_path / 'file').touch()
    what, advice = two_lines(whisper_nb('prepare', 'demo', option, tmp_path / 'file' / 'below'), 1)
    assert 'cannot write' in what and option in advice
    assert final_names() == []


def test_read_only_outputs(tmp_path, whisper_nb):
    "A read-only mount refuses even root; where none can be made, permissions stand in for it."
    (tmp_path / 'outputs').mkdir()
    mount = f'mount --bind outputs outputs && mount -o remount,ro,bind outputs && exec "$@"'
    wrap = ['unshare', '--user', '--mount', '--map-root-user', 'sh', '-c', mount, 'sh']
    if subprocess.run([*wrap, 'true'], capture_output=True).returncode:
        if os.geteuid() == 0: pytest.skip('this system allows no mounts, and permissions do not bind root')
        (tmp_path / 'outputs').chmod(0o500)
        wrap = []
    from conftest import COMMAND
    what, _ = two_lines(subprocess.run([*wrap, COMMAND, 'prepare', 'demo'], capture_output=True, text=True), 1)
    assert "cannot write to 'outputs'" in what


def test_disk_full(tmp_path, whisper_nb):
    "models/ on a file system of two megabytes: said before the work starts."
    (tmp_path / 'models').mkdir()
    wrap = ['unshare', '--user', '--mount', '--map-root-user', 'sh', '-c', 'mount -t tmpfs -o size=2m none models && "$@"; code=$?; ls -A models > listing; exit $code', 'sh']
    if subprocess.run([*wrap, 'true'], capture_output=True).returncode: pytest.skip('this system allows no mounts')
    from conftest import COMMAND
    what, advice = two_lines(subprocess.run([*wrap, COMMAND, 'prepare', 'demo'], capture_output=True, text=True), 1)
    assert 'are free' in what and 'free' in advice
    assert not [name for name in (tmp_path / 'listing').read_text().split() if not name.startswith('.')]


def test_unknown_option_and_command(whisper_nb):
    for words in (('prepare', '--skip-tests'), ('prepare', 'demo', '--quantization'), ('prepares',), ('prepare', 'demo', 'extra')):
        done = whisper_nb(*words)
        assert done.returncode == 2 and 'Traceback' not in done.stderr and done.stdout == ''


def test_wrong_values(whisper_nb):
    what, advice = two_lines(whisper_nb('prepare', 'demo', '--quantization', 'int4'), 2)
    assert 'int4' in what and 'int8' in advice
    two_lines(whisper_nb('transcribe', default_clip().path, '--model', DEMO_DIR, '--device', 'tpu'), 2)
    two_lines(whisper_nb('transcribe', default_clip().path, '--model', DEMO_DIR, '--compute-type', 'int3'), 2)


def test_not_audio(tmp_path, whisper_nb):
    (tmp_path / 'text.wav').write_text('no sound in here')
    what, _ = two_lines(whisper_nb('transcribe', 'text.wav', '--model', DEMO_DIR), 1)
    assert 'text.wav' in what


def test_interrupted(whisper_nb, tmp_path):
    "Ctrl-C: the two lines, and the next run goes on."
    import signal
    from conftest import COMMAND, listen_to_ctrl_c
    run = subprocess.Popen([COMMAND, 'prepare', 'demo'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c)
    while 'download' not in (line := run.stderr.readline()): assert line # until the first step is done; the job is short
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate()
    assert run.returncode == 1 and 'Traceback' not in errors
    assert errors.splitlines()[-2:] == ['❌ stopped', '→ run the same command again: finished steps are kept']


def test_debug_shows_the_traceback(whisper_nb):
    assert 'Traceback' in whisper_nb('prepare', 'larg-v3', WHISPER_NB_DEBUG='1').stderr


def test_help_is_quick_and_data_is_data(whisper_nb):
    def seconds():
        start = time.perf_counter()
        assert whisper_nb('--help').returncode == 0
        return time.perf_counter() - start
    assert min(seconds() for _ in range(7)) < 0.5
    json.loads(whisper_nb('verify', DEMO_DIR, '--json').stdout)
