"""The main job from outside: every combination of the skip options, re-runs, kills, and what it writes."""
import dataclasses
import hashlib
import inspect
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from whisper_nb.audio import default_clip
from whisper_nb.files import build_manifest, list_files, read_manifest
from whisper_nb.prepare import STEPS, prepare
from whisper_nb.verify import verify

from conftest import COMMAND, PROJECT, listen_to_ctrl_c

NOTEBOOK = PROJECT / 'nbs' / 'runs' / 'prepare.ipynb'
FLAGS = {'no_convert': 'convert', 'skip_fidelity': 'fidelity', 'skip_compress': 'compress', 'skip_test': 'offline test'}  # Option → the step it skips
COMBINATIONS = [dict(zip(FLAGS, given)) for given in itertools.product((False, True), repeat=4)]
FEW = [each for each in COMBINATIONS if not any(each.values()) or each['skip_fidelity'] and sum(each.values()) in (2, 4)]  # As whole processes, which take longer


def named(given: dict) -> str: return '+'.join(name for name, value in given.items() if value) or 'none'


def contents(directory: Path) -> dict[str, str]:
    "Path → SHA-256 of every file below a directory, what was measured aside."
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.rglob('*'))
            if path.is_file() and not path.name.startswith('prepare-') and not path.name.endswith('.fidelity.json') and '.locks' not in path.parts}


def check_outcome(steps: list[dict], results: dict, given: dict):
    "Is this what design's table says for these options?"
    skipped = {FLAGS[name] for name, value in given.items() if value} | ({'fidelity'} if given['no_convert'] else set())  # nothing to compare
    assert {step['name'] for step in steps if step['status'] == 'skipped'} == skipped
    assert [step['name'] for step in steps] == list(STEPS)
    assert all(step['status'] in ('done', 'reused') for step in steps if step['name'] not in skipped)
    name = 'demo' if given['no_convert'] else 'demo-ct2-float16'
    assert verify(Path('models') / name).ok
    assert Path('models/demo-ct2-float16').exists() != given['no_convert']
    archives = {path.name for path in Path('outputs').iterdir() if not path.name.startswith(('prepare-', 'out', '.')) and not path.name.endswith('.fidelity.json')}
    assert archives == (set() if given['skip_compress'] else {f'{name}.tar.gz{ending}' for ending in ('', '.md5', '.sha256')})
    model, = results['models']
    assert model['model'] == f'models/{name}' and ('archive' in model) != given['skip_compress']
    assert ('fidelity' in model) == ('fidelity' not in skipped) == (Path('outputs')/f'{name}.fidelity.json').exists()
    if given['skip_test']: assert 'text' not in model
    else:
        assert model['backend'] == ('transformers' if given['no_convert'] else 'faster-whisper')
        assert default_clip().text in model['text'].lower()


@pytest.mark.parametrize('given', COMBINATIONS, ids=named)
def test_function(given):
    report = prepare('demo', **given)
    check_outcome([dataclasses.asdict(step) for step in report.steps], report.results, given)


@pytest.mark.parametrize('given', FEW, ids=named)
def test_command_line(given, whisper_nb):
    flags = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    done = whisper_nb('prepare', 'demo', *flags, '--json')
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    check_outcome(report['steps'], report['results'], given)


@pytest.mark.parametrize('given', FEW, ids=named)
def test_papermill(given):
    flags = itertools.chain.from_iterable(('-p', name, str(value)) for name, value in given.items())
    command = [sys.executable, '-m', 'papermill', str(NOTEBOOK), 'out.ipynb', '-p', 'model', 'demo', *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cell = next(output for cell in nbformat.read('out.ipynb', 4).cells for output in cell.get('outputs', []) if output.metadata.get('whisper_nb'))
    report = json.loads(next(Path('outputs').glob('prepare-*.json')).read_text())
    assert cell.data['application/json'] == report['results']
    check_outcome(report['steps'], report['results'], given)


def test_parameters_are_defined_once(whisper_nb):
    "Python, command line and notebook: same names, same defaults (the notebook's model is the one that needs no network)."
    import papermill
    python = {name: each.default for name, each in inspect.signature(prepare).parameters.items()}
    notebook = {name: eval(entry['default']) for name, entry in papermill.inspect_notebook(str(NOTEBOOK)).items()}
    assert list(notebook) == list(python)
    assert notebook == python | {'model': 'demo'}
    text = whisper_nb('prepare', '--help').stdout
    assert all(f"--{name.replace('_', '-')}" in text for name in python if name != 'model')


def test_string_for_a_flag_is_refused():
    "papermill hands over 'false' as text: the run must not start with skip_test silently on."
    command = [sys.executable, '-m', 'papermill', str(NOTEBOOK), 'out.ipynb', '-p', 'skip_test', 'false']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "skip_test must be True or False, not the str 'false'" in done.stderr
    assert not list(Path('models').glob('*'))


def test_run_is_strict(whisper_nb):
    unknown = whisper_nb('run', NOTEBOOK, '-p', 'skip_tests', 'true')
    assert unknown.returncode == 2 and "no parameter 'skip_tests'" in unknown.stderr and 'did you mean skip_test?' in unknown.stderr
    wrong = whisper_nb('run', NOTEBOOK, '-p', 'skip_test', 'perhaps')
    assert wrong.returncode == 2 and 'True or False' in wrong.stderr
    good = whisper_nb('run', NOTEBOOK, '-p', 'skip_test', 'true', '-p', 'no_convert', 'true')
    assert good.returncode == 0, good.stderr
    executed = Path(good.stdout.strip())
    assert executed.is_file() and executed.with_suffix('.html').is_file()


def test_error_in_run_notebook_keeps_two_lines(whisper_nb):
    done = whisper_nb('run', NOTEBOOK, '-p', 'model', 'large-v9')
    assert done.returncode == 2
    assert done.stderr.splitlines()[-2] == "❌ 'large-v9' is no known model and no directory"
    assert 'openai/whisper-large-v3' in done.stderr.splitlines()[-1]


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    "A finished run, to compare with: the directory it ran in."
    directory = tmp_path_factory.mktemp('prepared')
    subprocess.run([COMMAND, 'prepare', 'demo'], cwd=directory, check=True, capture_output=True)
    return directory


BOTH = ['demo-ct2-float16', 'demo-ct2-int8']


def test_two_quantizations_at_once(prepared, whisper_nb):
    "From one pass over the source: both converted, archived, tested, and the same as when asked for alone."
    done = whisper_nb('prepare', 'demo', '--quantization', 'float16,int8', '--json')
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [step['status'] for step in report['steps']] == ['done'] * 6
    assert [each['model'] for each in report['results']['models']] == [f'models/{name}' for name in BOTH]
    for each, name in zip(report['results']['models'], BOTH):
        assert hashlib.sha256(Path(each['archive']).read_bytes()).hexdigest() == each['sha256']
        assert default_clip().text in each['text'].lower() and verify(Path('models') / name).ok
    alone = contents(prepared / 'models')
    assert {name: digest for name, digest in contents(Path.cwd() / 'models').items() if not name.startswith(BOTH[1])} == alone
    page = next(Path('outputs').glob('prepare-demo-*.html')).read_text()
    assert all(each['sha256'] in page for each in report['results']['models'])
    again = json.loads(whisper_nb('prepare', 'demo', '--quantization', 'int8', '--skip-test', '--json').stdout)
    assert {step['name']: step['status'] for step in again['steps']}['convert'] == 'reused'


def test_two_quantizations_by_papermill_and_afresh():
    command = [sys.executable, '-m', 'papermill', str(NOTEBOOK), 'out.ipynb', '-p', 'quantization', 'int8,float16', '-p', 'fresh', 'True', '-p', 'skip_test', 'True']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in Path('models').glob('demo-*')) == BOTH and len(list(Path('outputs').glob('*.tar.gz'))) == 2


def test_every_file_is_hashed_once_in_a_run(prepared, tmp_path, monkeypatch):
    "A re-run with nothing to do reads source, result and archive once each, and nothing else of any size."
    import whisper_nb.files as files
    for name in ('models', 'outputs'): shutil.copytree(prepared / name, tmp_path / name)
    read, right = [], files.hash_file
    monkeypatch.setattr(files, 'hash_file', lambda path, *args, **options: read.append(Path(path).name) or right(path, *args, **options))
    report = prepare('demo', skip_test=True)
    assert [step.status for step in report.steps] == ['reused', 'done', 'reused', 'reused', 'reused', 'skipped']
    packaged = 'model.safetensors' # the demo that comes with the package: is it still the one that was brought?
    assert sorted(read) == sorted([*list_files(Path('models/demo')), *list_files(Path('models/demo-ct2-float16')), packaged])
    assert report.seconds < 60


def test_archive_and_test_run_side_by_side_and_both_end(prepared, tmp_path, monkeypatch):
    "When the archive cannot be written the test is finished all the same, and the other way round; both verdicts are told."
    import whisper_nb.prepare as module
    for name in ('models', 'outputs'): shutil.copytree(prepared / name, tmp_path / name)
    def fail(*args, **options): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as patch:
        patch.setattr(module, 'pack', fail)
        report = prepare('demo')
    assert [step.status for step in report.steps] == ['reused', 'done', 'reused', 'reused', 'failed', 'done'] and not report.ok
    assert default_clip().text in report.results['models'][0]['text'] and 'archive' not in report.results['models'][0]
    monkeypatch.setattr(module, 'offline_test', fail)
    report = prepare('demo')
    assert [step.status for step in report.steps] == ['reused', 'done', 'reused', 'reused', 'reused', 'failed']
    assert 'archive' in report.results['models'][0] and 'text' not in report.results['models'][0]


@pytest.mark.parametrize('options', [[], ['--skip-compress']], ids=['while packing', 'while only the test runs'])
def test_ctrl_c_ends_the_test_too(options):
    "SIGINT to the command alone, while archive and test run side by side: it ends at once, and so does the test's child."
    code = """
import sys, time
import whisper_nb.prepare as module
def slow(*args, **options):
    print('packing', flush=True)
    time.sleep(60)
module.pack = slow
import whisper_nb.offline
whisper_nb.offline._CHILD = whisper_nb.offline._CHILD.replace('import json', 'import json, time; time.sleep(60)', 1)
from whisper_nb.cli import main
main(['prepare', 'demo', '--skip-fidelity', *sys.argv[1:]])
"""
    run = subprocess.Popen([sys.executable, '-c', code, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=listen_to_ctrl_c)
    end = time.monotonic() + 60
    while not (children := [child for child in psutil.Process(run.pid).children(recursive=True) if 'time.sleep(60)' in ' '.join(child.cmdline())]) and time.monotonic() < end: time.sleep(0.1)
    assert children
    if not options: assert run.stdout.readline() == 'packing\n'
    time.sleep(1)
    run.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, told = run.communicate(timeout=30)
    assert time.monotonic() - start < 10 and run.returncode == 1 and 'stopped' in told
    assert not [child for child in children if child.is_running() and child.status() != 'zombie']


def test_tools_accept_what_it_wrote(prepared, tmp_path):
    outputs = prepared / 'outputs'
    for tool, ending in (('md5sum', 'md5'), ('sha256sum', 'sha256')):
        done = subprocess.run([tool, '-c', f'demo-ct2-float16.tar.gz.{ending}'], cwd=outputs, capture_output=True, text=True)
        assert done.returncode == 0 and ': OK' in done.stdout
    subprocess.run(['tar', 'xzf', outputs / 'demo-ct2-float16.tar.gz'], cwd=tmp_path, check=True)
    assert contents(tmp_path / 'demo-ct2-float16') == contents(prepared / 'models' / 'demo-ct2-float16')


def test_two_runs_write_the_same_bytes(prepared, whisper_nb):
    assert whisper_nb('prepare', 'demo', '--skip-test', '--skip-fidelity').returncode == 0
    assert contents(Path.cwd() / 'models') == contents(prepared / 'models')
    assert contents(Path.cwd() / 'outputs') == contents(prepared / 'outputs')


def test_copied_elsewhere_it_transcribes_with_the_network_off(prepared, tmp_path):
    "No network at all: the command runs in a network namespace of its own."
    if subprocess.run(['unshare', '--user', '--net', '--map-root-user', 'true'], capture_output=True).returncode: pytest.skip('this system allows no network namespaces')
    elsewhere = tmp_path / 'another place'
    shutil.copytree(prepared / 'models' / 'demo-ct2-float16', elsewhere)
    clip = default_clip()
    done = subprocess.run(['unshare', '--user', '--net', '--map-root-user', COMMAND, 'transcribe', clip.path, '--model', elsewhere, '--language', 'en'],
                          capture_output=True, text=True, env={**os.environ, 'HOME': str(tmp_path / 'home')})
    assert done.returncode == 0, done.stderr
    assert clip.text in done.stdout.lower()


def test_a_rerun_repairs_what_is_damaged(prepared, tmp_path, whisper_nb):
    for name in ('models', 'outputs'): shutil.copytree(prepared / name, tmp_path / name)
    weights = tmp_path / 'models' / 'demo-ct2-float16' / 'model.bin'
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    report = json.loads(whisper_nb('prepare', 'demo', '--skip-test', '--json').stdout)
    assert {step['name']: step['status'] for step in report['steps']} == {
        'download': 'reused', 'verify': 'done', 'convert': 'done', 'fidelity': 'reused', 'compress': 'reused', 'offline test': 'skipped'}
    assert contents(tmp_path / 'models') == contents(prepared / 'models')


def test_fresh_makes_everything_anew(prepared, tmp_path, whisper_nb):
    for name in ('models', 'outputs'): shutil.copytree(prepared / name, tmp_path / name)
    done = whisper_nb('prepare', 'demo', '--fresh', '--json')
    assert [step['status'] for step in json.loads(done.stdout)['steps']] == ['done'] * 6
    assert contents(tmp_path / 'models') == contents(prepared / 'models')
    assert sorted(path.name for path in (tmp_path / 'models').iterdir() if not path.name.startswith('.')) == ['demo', 'demo-ct2-float16']


def test_fresh_keeps_the_old_model_until_the_new_one_is_proven(prepared, tmp_path, monkeypatch):
    "The new model fails its offline test: the old one, marked by a file's time, is still there."
    import whisper_nb.prepare as module
    for name in ('models', 'outputs'): shutil.copytree(prepared / name, tmp_path / name)
    before = (tmp_path / 'models' / 'demo-ct2-float16' / 'model.bin').stat().st_ino
    right = module.offline_test
    monkeypatch.setattr(module, 'offline_test', lambda path, **options: dataclasses.replace(right(path, **options), text='something else'))
    report = prepare('demo', fresh=True)
    assert not report.ok and report.exit_code == 1
    assert report.results['models'] == []  # nothing is claimed that was thrown away
    assert (tmp_path / 'models' / 'demo-ct2-float16' / 'model.bin').stat().st_ino == before
    assert contents(tmp_path / 'models') == contents(prepared / 'models')


def test_an_unfaithful_conversion_is_not_packed(monkeypatch):
    "The converted model verifies and would transcribe, but its word timestamps come from the wrong heads."
    import whisper_nb.prepare as module
    right = module.convert_all
    def wrong(*args, **options):
        made = right(*args, **options)
        settings = json.loads((made[0].path / 'config.json').read_text())
        (made[0].path / 'config.json').write_text(json.dumps(settings | dict(alignment_heads=[[0, 0]])))
        manifest = read_manifest(made[0].path)
        again = build_manifest(made[0].path, manifest.name, manifest.format, manifest.source, manifest.quantization, manifest.made_from)
        (made[0].path / 'manifest.json').write_text(again.to_json())
        return made
    monkeypatch.setattr(module, 'convert_all', wrong)
    report = prepare('demo')
    assert [step.status for step in report.steps] == ['done', 'done', 'done', 'failed', 'pending', 'pending'] and report.exit_code == 1
    assert 'heads' in report.steps[3].detail and not list(Path('outputs').glob('*.tar.gz'))


def test_fresh_replaces_nothing_of_the_users(prepared, tmp_path, whisper_nb):
    (tmp_path / 'models' / 'demo-ct2-float16').mkdir(parents=True)
    (tmp_path / 'models' / 'demo-ct2-float16' / 'notes.txt').write_text('mine')
    for flags in ([], ['--fresh']):
        done = whisper_nb('prepare', 'demo', *flags)
        assert done.returncode == 2 and 'not a prepared model' in done.stderr
    assert (tmp_path / 'models' / 'demo-ct2-float16' / 'notes.txt').read_text() == 'mine'


def test_fresh_with_one_directory_for_all(prepared, tmp_path, whisper_nb):
    for _ in range(2): assert whisper_nb('prepare', 'demo', '--fresh', '--skip-test', '--skip-fidelity', '--models-dir', 'all', '--outputs-dir', 'all').returncode == 0
    assert contents(tmp_path / 'all' / 'demo-ct2-float16') == contents(prepared / 'models' / 'demo-ct2-float16')
    assert (tmp_path / 'all' / 'demo-ct2-float16.tar.gz').read_bytes() == (prepared / 'outputs' / 'demo-ct2-float16.tar.gz').read_bytes()


def test_report_is_written_as_page_and_data(prepared):
    data = json.loads(next((prepared / 'outputs').glob('prepare-demo-*.json')).read_text())
    page = next((prepared / 'outputs').glob('prepare-demo-*.html')).read_text()
    assert data['ok'] and data['results']['models'][0]['sha256'] in page
    assert str(prepared) not in page + json.dumps(data)  # no path of the machine
    assert default_clip().text in page


def test_manifests_lead_back_to_the_source(prepared):
    source, made = (read_manifest(prepared / 'models' / name) for name in ('demo', 'demo-ct2-float16'))
    assert made.made_from == {'name': 'demo', 'manifest_sha256': source.sha256}
    assert made.quantization == 'float16' and made.source == source.source
    assert {'model.bin', 'config.json', 'tokenizer.json', 'preprocessor_config.json', 'vocabulary.json'} <= set(list_files(prepared / 'models' / 'demo-ct2-float16'))
