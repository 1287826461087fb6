"Through every store and back, byte for byte; what is refused, what is forced, what a cut-off run leaves; the record of the run."
import hashlib, inspect, json, shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import PROJECT
from drive import drive_server
from servers import BUCKET, gcs_emulator, http_server, moto_server, s3rver, unlisted
from test_pack import contents, visible

from whisper_nb.errors import RequestError, StepError
from whisper_nb.fidelity import Fidelity, Finding
from whisper_nb.files import build_manifest, read_manifest
from whisper_nb.formats import read_model_bin
from whisper_nb.mirror import serving
from whisper_nb.pack import pack
from whisper_nb.prepare import prepare
from whisper_nb.publish import STEPS, publish, require_proven
from whisper_nb.restore import LATEST_NAME, PREFIX, read_record, restore
from whisper_nb.stores import open_store, read_ahead

NAME = 'demo-ct2-float16'

@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    "A directory with the prepared demo."
    directory = tmp_path_factory.mktemp('prepared')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv('TQDM_DISABLE', '1')
        prepare('demo', skip_fidelity=True, skip_test=True, skip_compress=True).require_ok()
    return directory

@pytest.fixture
def model(prepared, tmp_path): return shutil.copytree(prepared/'models'/NAME, tmp_path/'models'/NAME)

def changed(model, **files):
    "Another version: a model of the same name whose manifest fits its changed files."
    for name, content in files.items(): (model/name.replace('_json', '.json').replace('_bin', '.bin')).write_bytes(content)
    old = read_manifest(model)
    (model/'manifest.json').unlink()
    (model/'manifest.json').write_text(build_manifest(model, old.name, old.format, old.source, old.quantization, old.made_from).to_json())
    return model

def newer(model):
    "The same model with a space at the end of a settings file."
    return changed(shutil.copytree(model, model.parent.parent/'newer'/NAME), preprocessor_config_json=(model/'preprocessor_config.json').read_bytes() + b' ')

def statuses(report): return [step.status for step in report.steps]
def latest(url='store'): return read_record(open_store(url), f'{NAME}/{LATEST_NAME}')
def files(directory): return {path: path.stat().st_mtime_ns for path in Path(directory).rglob('*') if path.is_file()}

# Every store

@contextmanager
def directory(place):
    yield str(place/'store'), {}

@contextmanager
def s3_moto(place):
    with moto_server() as server: yield f's3://{BUCKET}/some/prefix', server.environment

@contextmanager
def s3_s3rver(place):
    with s3rver(place/'buckets') as server: yield f's3://{BUCKET}/some/prefix', server.environment

@contextmanager
def gcs(place):
    with gcs_emulator() as server: yield f'gs://{BUCKET}/some/prefix', server.environment

@contextmanager
def hub(place):
    (place/'hub').mkdir()
    with serving(place/'hub', writable=True) as endpoint: yield 'hf://someone/models/some/prefix', dict(HF_ENDPOINT=endpoint, HF_TOKEN='hf_secret')

@contextmanager
def google_drive(place):
    with drive_server() as drive: yield 'gdrive://root/some/prefix', drive.environment

STORES = {each.__name__: each for each in (directory, s3_moto, s3_s3rver, gcs, hub, google_drive)}

@pytest.mark.parametrize('store', STORES)
def test_through_a_store_and_back(store, model, tmp_path, monkeypatch):
    with STORES[store](tmp_path) as (url, environment):
        for name, value in environment.items(): monkeypatch.setenv(name, value)
        report = publish(str(model), url, skip_test=True)
        assert statuses(report) == ['done', 'done', 'skipped', 'done', 'done', 'done', 'done'], report
        back = restore(f'{url}/{NAME}', 'restored')
        assert contents(back.path) == contents(model) and not back.reused
        archive = Path(report.results['archive']).read_bytes()
        opened = open_store(url)
        stored = opened.describe(f'{NAME}/{report.results["sha256"][:PREFIX]}/{NAME}.tar.gz')
        with read_ahead(opened, stored) as reader: assert b''.join(iter(lambda: reader.read(1 << 20), b'')) == archive
        again = publish(str(model), url, skip_test=True)
        assert statuses(again) == ['done', 'done', 'skipped', 'reused', 'reused', 'reused', 'reused'], again
        assert again.results['uploaded'] is False and restore(f'{url}/{NAME}', 'restored').reused
        first, second = latest(url), publish(str(newer(model)), url, skip_test=True)
        assert second.ok and latest(url).version != first.version
        assert contents(restore(f'{url}/{NAME}/{first.version}', 'older').path) == contents(model)
        assert contents(restore(f'{url}/{NAME}', 'restored').path) == contents(tmp_path/'newer'/NAME)
    said = ' '.join(path.read_text() for path in Path('outputs').glob('publish-*'))
    assert not any(value in said for name, value in environment.items() if any(word in name for word in ('SECRET', 'TOKEN')))

@pytest.mark.parametrize('ranges', [True, False])
def test_a_web_server_gives_it_out(ranges, model):
    publish(str(model), 'store', skip_test=True).require_ok()
    with http_server(Path('store'), ranges=ranges) as server:
        assert contents(restore(f'{server.url}/{NAME}', 'one').path) == contents(model)
        assert contents(restore(f'{server.url}/{NAME}/{latest().archive}', 'two').path) == contents(model)
        refused = publish(str(model), server.url, skip_test=True)
        assert statuses(refused)[0] == 'failed' and refused.exit_code == 2 and 'only be read' in refused.steps[0].detail

def test_s3_storage_class_and_encryption(model, monkeypatch):
    with moto_server() as server:
        for name, value in server.environment.items(): monkeypatch.setenv(name, value)
        publish(str(model), f's3://{BUCKET}/models', skip_test=True, storage_class='STANDARD_IA', server_side_encryption='aws:kms', kms_key='alias/models').require_ok()
        import boto3
        client = boto3.client('s3', endpoint_url=server.environment['AWS_ENDPOINT_URL'])
        for name, storage in ((f'{NAME}/{latest(f"s3://{BUCKET}/models").archive}', 'STANDARD_IA'), (f'{NAME}/{LATEST_NAME}', None)): # the note must be readable at once
            head = client.head_object(Bucket=BUCKET, Key=f'models/{name}')
            assert (head.get('StorageClass'), head['ServerSideEncryption']) == (storage, 'aws:kms') and head['SSEKMSKeyId'].endswith('alias/models')

def test_a_bucket_that_may_not_be_listed(model, monkeypatch):
    "What is not there is refused: a first version, an optional file; but a model that is not there cannot be told from one that may not be seen."
    with moto_server() as server, unlisted(server) as reluctant:
        for name, value in reluctant.environment.items(): monkeypatch.setenv(name, value)
        url = f's3://{BUCKET}/models'
        for each in (model, newer(model)): publish(str(each), url, skip_test=True).require_ok()
        version = latest(url).version
        for place in (NAME, f'{NAME}/{version}', f'{NAME}/{version}/{NAME}.tar.gz'): assert contents(restore(f'{url}/{place}', 'restored').path) == contents(Path('newer')/NAME)
        import boto3
        bucket = boto3.resource('s3', endpoint_url=server.url).Bucket(BUCKET)
        for each in bucket.objects.all():
            if not each.key.endswith('.tar.gz'): each.delete()
        for place in (f'{NAME}/{version}', f'{NAME}/{version}/{NAME}.tar.gz'): assert contents(restore(f'{url}/{place}', 'bare').path) == contents(Path('newer')/NAME)
        for place in (NAME, 'other', f'{NAME}/0123456789ab', f'{NAME}/nothing.tar.gz'):
            with pytest.raises(StepError, match='refuses access'): restore(f'{url}/{place}', 'nowhere')
    assert not visible(Path('nowhere'))

# The whole job, from outside

def test_command(model, whisper_nb):
    done = whisper_nb('publish', f'models/{NAME}', 'store', '--json')
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [step['name'] for step in said['steps']] == list(STEPS) and {step['status'] for step in said['steps']} == {'done'}
    assert 'set a timer' in next(step['detail'] for step in said['steps'] if step['name'] == 'offline test')
    results = said['results']
    assert results['url'] == f'store/{NAME}' and results['uploaded'] and results['forced'] is None and not results['signed']
    assert results['sha256'] == hashlib.sha256(Path(results['archive']).read_bytes()).hexdigest()
    page = Path(results['report'])
    assert page.is_file() and json.loads(page.with_suffix('.json').read_text())['results'] == results
    assert whisper_nb('restore', results['version'], 'restored').returncode == 0
    assert contents(Path('restored')/NAME) == contents(model)

def test_wrong_requests(model, whisper_nb):
    Path('text.txt').write_text('x')
    done = whisper_nb('publish', f'models/{NAME}', 's3://key:secret@bucket/x')
    assert done.returncode == 2 and 'Traceback' not in done.stderr and 'secret' not in done.stderr and '\n→ ' in done.stderr, done.stderr
    for path, url, options in (('nowhere', 'store', {}), (f'models/{NAME}', 'ftp://host/x', {}), (f'models/{NAME}', 'store', dict(format='zip')), ('text.txt', 'store', {})):
        with pytest.raises(RequestError): publish(path, url, **options)
    assert not Path('store').exists()

def test_a_model_is_not_published_into_itself(model):
    "Its directory would hold archives of itself, and no longer be what its manifest says."
    Path('link').symlink_to(f'models/{NAME}')
    for url in ('models', f'models/{NAME}', f'models/{NAME}/store', 'link', Path('models').absolute().as_uri()):
        with pytest.raises(RequestError, match="own directory"): publish(str(model), url, skip_test=True)
    assert visible(Path('models')) == [NAME] and not (model/NAME).exists()
    publish(str(pack(model, 'outputs').path), 'elsewhere', skip_test=True).require_ok()

def test_tested_stays_tested(model):
    "The record says whether these bytes transcribed offline before they were published."
    publish(str(model), 'store', skip_test=True).require_ok()
    assert latest().tested is False
    publish(str(model), 'store').require_ok()
    assert latest().tested is True
    again = publish(str(model), 'store', skip_test=True)
    assert latest().tested is True and statuses(again)[-1] == 'reused'
    publish(str(newer(model)), 'store', skip_test=True).require_ok()
    assert latest().tested is False

def test_somebody_else_at_the_same_time(model, caplog, monkeypatch):
    "The one that ends last is the latest, and says so."
    publish(str(model), 'store', skip_test=True).require_ok()
    from whisper_nb import publish as module
    real = module.pack
    def meanwhile(directory, **options):
        monkeypatch.setattr(module, 'pack', real)
        publish(str(newer(model)), 'store', skip_test=True, outputs_dir='elsewhere').require_ok()
        return real(directory, **options)
    monkeypatch.setattr(module, 'pack', meanwhile)
    publish(str(model), 'store', skip_test=True).require_ok()
    assert any('has published a version' in line.message for line in caplog.records)
    assert contents(restore(f'store/{NAME}', 'restored').path) == contents(model)

def test_an_archive_that_is_made_anew_meanwhile(model, monkeypatch):
    "What was proven is what is uploaded, or nothing is."
    archive, other = pack(model, 'outputs').path, pack(newer(model), 'others').path
    from whisper_nb import publish as module
    real = module._verified
    def meanwhile(*arguments):
        found = real(*arguments)
        shutil.copy(other, archive)
        return found
    monkeypatch.setattr(module, '_verified', meanwhile)
    report = publish(str(archive), 'store', skip_test=True)
    assert statuses(report)[3] == 'failed' and 'made anew' in report.failures[0].detail and not visible(Path('store'))

def test_formats_and_archives(model):
    for format in ('tar.zst', 'tar'):
        report = publish(str(model), format, format=format, skip_test=True)
        assert report.ok and contents(restore(f'{format}/{NAME}', f'from {format}').path) == contents(model)
        again = publish(report.results['archive'], f'{format} again', skip_test=True)
        assert again.ok and again.results['sha256'] == report.results['sha256']
        assert contents(restore(f'{format} again/{NAME}', f'again {format}').path) == contents(model)
    assert not list(Path('outputs').glob('.publish/*'))

def test_another_model_that_is_being_proven_is_left_alone(model):
    beside = Path('outputs/.publish/another')
    beside.mkdir(parents=True)
    for _ in range(2): assert publish(str(pack(model, 'outputs').path), 'store', skip_test=True).ok and list(beside.parent.iterdir()) == [beside]
    beside.rmdir()
    assert publish(str(model), 'store', skip_test=True).ok and not beside.parent.exists()


def test_an_archive_that_is_not_right(model):
    archive = pack(model, 'outputs').path
    renamed = shutil.copy(archive, 'other.tar.gz')
    report = publish(renamed, 'store', skip_test=True)
    assert report.exit_code == 2 and f'{NAME}.tar.gz' in report.failures[0].advice
    data = bytearray(archive.read_bytes())
    data[len(data)//2] ^= 1
    archive.write_bytes(data)
    for keep in (True, False): # with its checksums, and without
        report = publish(str(archive), 'store', skip_test=True, force=True)
        assert statuses(report)[:2] == ['done', 'failed'] and report.exit_code == 1
        if keep: [sidecar.unlink() for sidecar in (*archive.parent.glob('*.md5'), *archive.parent.glob('*.sha256'))]
    assert not visible(Path('store')) and not list(Path('outputs').glob('.publish/*'))

# What is not proven

def deaf(model):
    "A model that verifies and hears nothing: its manifest fits, its large tensors are zeros."
    data = bytearray((model/'model.bin').read_bytes())
    for tensor in read_model_bin(model/'model.bin').tensors.values():
        if tensor.bytes > 20_000: data[tensor.start:tensor.start + tensor.bytes] = bytes(tensor.bytes)
    return changed(model, model_bin=bytes(data))

def test_a_failed_offline_test(model):
    report = publish(str(deaf(model)), 'store')
    assert statuses(report) == ['done', 'done', 'failed', 'pending', 'pending', 'pending', 'pending'] and report.exit_code == 1
    assert not visible(Path('store'))

def test_force(model, caplog, whisper_nb):
    report = publish(str(deaf(model)), 'store', force=True)
    assert report.ok and 'offline test' in report.results['forced']
    assert any('all the same' in line.message for line in caplog.records)
    assert latest().forced == report.results['forced']
    assert restore(f'store/{NAME}', 'restored').forced == latest().forced
    done = whisper_nb('restore', f'store/{NAME}', 'restored')
    assert done.returncode == 0 and 'was published although' in done.stderr

def test_what_does_not_verify(model):
    (model/'tokenizer.json').unlink()
    report = publish(str(changed(model)), 'store', skip_test=True)
    assert statuses(report)[:2] == ['done', 'failed'] and 'tokenizer.json' in report.failures[0].detail and not visible(Path('store'))
    assert publish(str(model), 'store', skip_test=True, force=True).ok and 'tokenizer.json' in latest().forced

@pytest.mark.parametrize('force', [False, True])
def test_damaged_files_are_never_published(force, model):
    "What its manifest contradicts could not be restored either."
    data = bytearray((model/'model.bin').read_bytes())
    data[-1000] ^= 1
    (model/'model.bin').write_bytes(data)
    assert publish(str(model), 'store', skip_test=True, force=force).exit_code == 1
    assert not visible(Path('store'))

def test_an_unfaithful_model(model):
    "A comparison that `prepare` or `proven_fidelity` kept."
    assert require_proven(model, skip_test=True) is None
    found = Fidelity(NAME, 'demo', 'float16', 'cpu', {}, (Finding('weights', 'files', 9, 0.65),))
    def keep(converted): (Path('outputs')/f'{NAME}.fidelity.json').write_text(json.dumps(json.loads(found.to_json()) | dict(rests_on=dict(converted=converted))))
    Path('outputs').mkdir()
    keep(read_manifest(model).sha256)
    report = publish(str(model), 'store', skip_test=True)
    assert statuses(report)[:2] == ['done', 'failed'] and 'NOT faithful' in report.failures[0].detail and not visible(Path('store'))
    assert require_proven(model, force=True, skip_test=True) == found.verdict
    keep('0' * 64) # about another version
    assert require_proven(model, skip_test=True) is None
    for text in ('', '[]', '{"ok": false}', '{'): # not ours
        (Path('outputs')/f'{NAME}.fidelity.json').write_text(text)
        assert require_proven(model, skip_test=True) is None

def test_a_directory_without_a_manifest(model):
    (model/'manifest.json').unlink()
    report = publish(str(model), 'store', skip_test=True, force=True)
    assert report.exit_code == 2 and 'manifest.json' in report.failures[0].detail and not visible(Path('store'))

# Cut off

def test_between_upload_and_latest(model):
    "The store has the new version, and latest.json names the old one until the next run."
    publish(str(model), 'store', skip_test=True).require_ok()
    old, path = latest(), Path('store')/NAME/LATEST_NAME
    right = path.read_bytes()
    assert publish(str(newer(model)), 'store', skip_test=True).ok
    path.write_bytes(right) # as if the run had ended just before its last step
    assert latest() == old
    again = publish(str(Path('newer')/NAME), 'store', skip_test=True)
    assert statuses(again)[-3:] == ['reused', 'reused', 'done'] and latest().version != old.version

def test_what_is_wrong_in_the_store_is_replaced(model):
    publish(str(model), 'store', skip_test=True).require_ok()
    archive = Path('store')/NAME/latest().archive
    for damage in (lambda data: data[:-1], lambda data: data[:1000] + b'x' + data[1001:]):
        archive.write_bytes(damage(archive.read_bytes()))
        (Path('store')/NAME/LATEST_NAME).write_text('{')
        assert publish(str(model), 'store', skip_test=True).results['uploaded']
        assert contents(restore(f'store/{NAME}', 'restored').path) == contents(model)

# One definition of the parameters, and the run notebooks

@pytest.mark.parametrize('function, other', [(publish, dict(path='', url='outputs/store')), (restore, dict(url=f'outputs/store/{NAME}', dest='outputs/restored'))], ids=['publish', 'restore'])
def test_parameters_are_defined_once(function, other, whisper_nb):
    "Python, command line and notebook: same names, same defaults (the notebook's own lead to the demo)."
    import papermill
    python = {name: each.default for name, each in inspect.signature(function).parameters.items()}
    notebook = {name: eval(entry['default']) for name, entry in papermill.inspect_notebook(str(PROJECT/'nbs'/'runs'/f'{function.__name__}.ipynb')).items()}
    assert list(notebook) == list(python) and notebook == python | other
    text = whisper_nb(function.__name__, '--help').stdout
    assert all(f"--{name.replace('_', '-')}" in text for name in python if name not in ('path', 'url', 'dest'))

def test_run_notebooks(whisper_nb):
    "With their defaults, one after the other, in an empty directory."
    for name in ('publish', 'restore'):
        done = whisper_nb('run', PROJECT/'nbs'/'runs'/f'{name}.ipynb')
        assert done.returncode == 0, done.stderr
    assert latest('outputs/store').model == NAME and Path(done.stdout.strip()).with_suffix('.html').is_file()
    assert contents(Path('outputs/restored')/NAME) == contents(Path('models')/NAME)
    signed = whisper_nb('run', PROJECT/'nbs'/'runs'/'restore.ipynb', '-p', 'url', 'https://host/toy.tar.gz?X-Amz-Signature=5ec4e7')
    assert signed.returncode == 2 and '5ec4e7' not in signed.stderr and not any('5ec4e7' in path.read_text() for path in Path('outputs').glob('restore-*'))
