"Google Drive through Google's own client, against a stand-in on the same machine."
import hashlib, logging, os, random, subprocess, sys, traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip('googleapiclient', reason="Google's client is not installed: pip install 'whisper_nb[gdrive]'")

from drive import DOCUMENT, FOLDER, STEP, drive_server, service_account

from whisper_nb.addresses import parse_address
from whisper_nb.errors import ChangedError, PassingError, RequestError, StepError, explain
from whisper_nb.google_drive import DriveStore
from whisper_nb.models import DEMO_DIR
from whisper_nb.pack import pack
from whisper_nb.stores import open_store, read_ahead

MEGABYTE = 1 << 20
NOW = (0,) * 3 # Further tries, without waiting

@pytest.fixture
def drive(monkeypatch):
    for name in ('GOOGLE_APPLICATION_CREDENTIALS', 'GOOGLE_CLOUD_PROJECT'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('NO_GCE_CHECK', 'true') # not to look for a machine in Google's cloud
    with drive_server() as drive:
        monkeypatch.setenv('WHISPER_NB_DRIVE_ENDPOINT', drive.endpoint)
        yield drive

@pytest.fixture
def small(monkeypatch): monkeypatch.setattr('whisper_nb.google_drive._PIECE', MEGABYTE)

@pytest.fixture
def store(drive): return DriveStore(parse_address('gdrive://root/models'), waits=NOW)

def made(path, size, seed=1):
    "A file of random bytes."
    path.write_bytes(random.Random(seed).randbytes(size))
    return path

def contents(store, path): return b''.join(store.blocks(store.describe(path)))

# There and back

@pytest.mark.parametrize('size', [0, 1, STEP, MEGABYTE, 3*MEGABYTE, 9*MEGABYTE + 1])
def test_round_trip(store, drive, small, tmp_path, size):
    file, counted = made(tmp_path/'file', size), []
    store.write(file, 'a/b/toy.tar.gz', counted.append)
    stored = store.describe('a/b/toy.tar.gz')
    assert (stored.path, stored.size, stored.sha256, stored.ranges) == ('a/b/toy.tar.gz', size, hashlib.sha256(file.read_bytes()).hexdigest(), True)
    assert sum(counted) == size and contents(store, 'a/b/toy.tar.gz') == file.read_bytes()
    assert [item.name for item in drive.items.values() if item.mimeType == FOLDER] == ['My Drive', 'models', 'a', 'b']

def test_written_again_is_a_new_version_of_the_same_file(store, drive):
    store.write_bytes(b'one', 'latest.json')
    before = store.describe('latest.json')
    store.write_bytes(b'two!', 'latest.json')
    after = store.describe('latest.json')
    assert len(drive.named('latest.json')) == 1 and before.version != after.version and store.read(after, 0, 4) == b'two!'
    with pytest.raises(ChangedError, match='replaced'): store.read(before, 0, 3)

def test_the_same_through_open_store(drive, tmp_path):
    store, file = open_store('gdrive://root/store'), made(tmp_path/'file', 20*MEGABYTE)
    store.write(file, 'toy.tar.gz', lambda count: None)
    drive.pause = 0.1 # seconds, as far away as a server of Google's
    with read_ahead(store, store.describe('toy.tar.gz')) as reader: assert b''.join(iter(lambda: reader.read(MEGABYTE), b'')) == file.read_bytes()
    assert drive.most > 1 # several ranges at a time

def test_a_model_goes_and_comes_back(drive, tmp_path, whisper_nb):
    from whisper_nb.convert import convert
    from shutil import copytree
    model = convert(copytree(DEMO_DIR, tmp_path/'models'/'demo')).path
    archive = pack(model, tmp_path/'outputs')
    done = whisper_nb('publish', archive.path, 'gdrive://root/models', '--skip-test')
    assert done.returncode == 0, done.stderr
    assert drive.named(archive.path.name)[0].content == archive.path.read_bytes()
    done = whisper_nb('restore', f'gdrive://root/models/{model.name}', tmp_path/'server')
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path/'server'/model.name).iterdir()} == {path.name: path.read_bytes() for path in model.iterdir()}

# Names

@pytest.mark.parametrize('name', ["it's here", 'back\\slash', "') or name != ('", 'ünï', 'a and b', 'x' * 200])
def test_any_name(drive, name):
    drive.add('other', b'no')
    found = drive.add(name, b'yes', parent=drive.add(name).id)
    address = parse_address('gdrive://root')
    assert DriveStore(address).describe(f'{name}/{name}').version.startswith(f'{found.id}@')

def test_several_of_one_name(store, drive):
    models = drive.add('models')
    drive.add('x', b'first', parent=models.id)
    newest = drive.add('x', b'newest', parent=drive.add('models').id) # a second folder of the same name
    drive.add('x', b'in the bin', parent=models.id, trashed=True)
    drive.add('X', b'large', parent=models.id)
    drive.add('x', parent=models.id) # a folder
    drive.add('x', b'elsewhere')
    assert store.describe('x').version.startswith(f'{newest.id}@')
    store.write_bytes(b'replaced', 'x')
    assert newest.content == b'replaced' and contents(store, 'X') == b'large'

def test_what_is_no_file(store, drive):
    models = drive.add('models')
    drive.add('plan', parent=models.id, mimeType=DOCUMENT)
    drive.add('folder', parent=models.id)
    assert store.describe('folder') is None and store.describe('folder/none') is None and store.describe('nothing') is None
    with pytest.raises(RequestError, match=r"gdrive://root/models/plan.*document"): store.describe('plan')

def test_more_than_one_page(store, drive):
    drive.page, models = 3, drive.add('models')
    for number in range(10): drive.add('x', b'%d' % number, parent=models.id)
    assert contents(store, 'x') == b'9'

def test_shared_drive(drive):
    top = drive.add('', parent='a-shared-drive', drive='a-shared-drive')
    drive.items['team'] = drive.items.pop(top.id)
    drive.items['team'].id = 'team'
    store = DriveStore(parse_address('gdrive://team/models'))
    store.write_bytes(b'ours', 'toy/x')
    assert contents(store, 'toy/x') == b'ours' and drive.named('x')[0].drive == 'a-shared-drive'

def test_without_checksums(store, drive):
    drive.add('x', b'123', parent=drive.add('models').id, checksums=False)
    assert store.describe('x').sha256 is None and contents(store, 'x') == b'123'

# Reading

def test_replaced_between_two_ranges(store, drive, tmp_path):
    store.write(made(tmp_path/'one', MEGABYTE), 'x')
    stored = store.describe('x')
    store.read(stored, 0, 1000)
    store.write(made(tmp_path/'two', MEGABYTE, seed=2), 'x')
    with pytest.raises(ChangedError): store.read(stored, 1000, 1000)
    store.write(made(tmp_path/'short', 10), 'x') # the range is not even there
    with pytest.raises(ChangedError): store.read(stored, 1000, 1000)

@pytest.mark.parametrize('how', ['deleted', 'trashed'])
def test_gone_between_two_ranges(store, drive, how):
    store.write_bytes(b'12345', 'x')
    stored, item = store.describe('x'), drive.named('x')[0]
    if how == 'deleted': del drive.items[item.id]
    else: item.trashed = True
    with pytest.raises(ChangedError): store.read(stored, 0, 5)
    assert store.describe('x') is None

@pytest.mark.parametrize('fault', [('status', 503, 'backendError'), ('status', 429, 'rateLimitExceeded'), ('status', 403, 'userRateLimitExceeded'), ('status', 500, ''), ('cut', 1000)])
def test_what_passes(store, drive, fault):
    store.write_bytes(bytes(100_000), 'x')
    stored = store.describe('x')
    for method, part, action in (('GET', 'alt=media', lambda: store.read(stored, 0, 100_000)), ('GET', 'q=', lambda: store.describe('x'))):
        drive.fail(method, part, fault if fault[0] == 'status' else ('cut', 50))
        with pytest.raises(PassingError): action()
        action()
    if fault[0] == 'status':
        drive.fail('GET', 'q=', fault)
        drive.fail('POST', 'upload', fault)
        store.write_bytes(b'in the end', 'y')
        assert contents(store, 'y') == b'in the end'

def test_an_interrupted_read_through_the_reader(store, drive, tmp_path):
    file = made(tmp_path/'file', 20*MEGABYTE)
    store.write(file, 'x')
    drive.fail('GET', 'alt=media', ('cut', 100_000), ('none',), ('status', 503, ''), ('cut', 10), ('status', 403, 'rateLimitExceeded'))
    with read_ahead(store, store.describe('x'), waits=NOW) as reader: assert b''.join(iter(lambda: reader.read(MEGABYTE), b'')) == file.read_bytes()

def test_many_threads(store, tmp_path):
    file = made(tmp_path/'file', MEGABYTE)
    store.write(file, 'x')
    stored, content = store.describe('x'), file.read_bytes()
    with ThreadPoolExecutor(8) as pool: assert all(pool.map(lambda start: store.read(stored, start, 1000) == content[start:start + 1000], range(0, MEGABYTE - 1000, 10_000)))

# Uploads

@pytest.mark.parametrize('faults', [[('keep', 2*STEP)], [('keep', 0)], [('keep', STEP + 1), ('keep', STEP), ('cut', 3*STEP)], [('status', 503, 'backendError')], [('cut', 0)], [('lost',)],
    [('none',), ('lost',)], [('none',), ('none',), ('lost',)], [('status', 403, 'rateLimitExceeded'), ('status', 429, '')]])
def test_an_upload_goes_on(store, drive, small, tmp_path, faults):
    "Nothing is kept twice, the file is whole, and the bar ends where it must."
    file, counted, size = made(tmp_path/'file', 3*MEGABYTE - 7), [], 3*MEGABYTE - 7
    drive.fail('PUT', 'upload_id', *faults)
    store.write(file, 'x', counted.append)
    assert drive.received == sum(counted) == size and contents(store, 'x') == file.read_bytes()
    assert len(drive.sessions) == 1

def test_an_upload_that_was_forgotten_begins_again(store, drive, small, tmp_path):
    file, counted, size = made(tmp_path/'file', 2*MEGABYTE - 7), [], 2*MEGABYTE - 7
    drive.fail('PUT', 'upload_id', ('none',), ('forget',))
    store.write(file, 'x', counted.append)
    assert drive.received == MEGABYTE + size and sum(counted) == size and contents(store, 'x') == file.read_bytes()

def test_nothing_is_visible_before_its_time(store, drive, small, tmp_path):
    "The new file is not there, and the old one is the old one, until the last piece; not when the upload is given up either."
    store.write_bytes(b'old', 'old')
    file = made(tmp_path/'file', 2*MEGABYTE)
    for path in ('new', 'old'):
        drive.fail('PUT', 'upload_id', ('none',), *[('status', 503, '')] * 10)
        with pytest.raises(PassingError): store.write(file, path)
        drive.rules.clear()
    assert drive.named('new') == [] and contents(store, 'old') == b'old'

def test_the_file_changes_while_it_is_uploaded(store, drive, small, tmp_path):
    file = made(tmp_path/'file', 3*MEGABYTE)
    def shorten(count):
        if count: os.truncate(file, MEGABYTE + 5)
    with pytest.raises(StepError, match='shorter'): store.write(file, 'x', shorten)
    assert drive.named('x') == []

def test_memory(drive, tmp_path):
    "A large upload and its reading need some pieces, not the file."
    code = '''if True:
        import resource, sys
        from pathlib import Path
        from whisper_nb.addresses import parse_address
        from whisper_nb.google_drive import DriveStore
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        store = DriveStore(parse_address('gdrive://root'))
        store.write_bytes(b'x', 'x')
        before = peak()
        store.write(Path(sys.argv[1]), 'large')
        for block in store.blocks(store.describe('large')): pass
        print(peak() - before)'''
    out = subprocess.run([sys.executable, '-c', code, str(made(tmp_path/'file', 90*MEGABYTE))], capture_output=True, text=True, check=True).stdout
    assert int(out) < 64

# Refusals and credentials

REFUSED = [((403, 'storageQuotaExceeded'), 'no room', 'shared drive'), ((403, 'insufficientFilePermissions'), 'may not write', 'share the folder'), ((403, 'insufficientPermissions'), 'do not include Drive', 'GOOGLE_APPLICATION_CREDENTIALS'),
    ((403, 'accessNotConfigured'), 'switched off', 'gcloud services enable'), ((401, 'authError'), 'does not accept', 'GOOGLE_APPLICATION_CREDENTIALS'), ((400, 'something'), 'HTTP 400, something', 'browser')]

@pytest.mark.parametrize('answer, what, advice', REFUSED, ids=lambda each: '-'.join(map(str, each)) if isinstance(each, tuple) else '')
def test_refusals(store, drive, answer, what, advice):
    "Reported at once, in words, without what the server said."
    drive.fail('POST', 'upload', ('status', *answer))
    with pytest.raises(StepError) as error: store.write_bytes(b'', 'x')
    problem = explain(error.value)
    assert what in problem.what and advice in problem.advice and 'message of the server' not in str(problem) and not isinstance(error.value, PassingError)
    assert error.value.__suppress_context__ and drive.count('POST', 'upload') == 1

def test_no_such_folder(drive):
    for action in (lambda store: store.describe('x'), lambda store: store.write_bytes(b'', 'x'), lambda store: store.write_bytes(b'', 'a/x')):
        with pytest.raises(RequestError, match="'gdrive://nobody' is not in Google Drive, or may not be seen"): action(DriveStore(parse_address('gdrive://nobody')))

def test_something_else_answers(drive, monkeypatch):
    "The page on which one signs in to a network, say."
    from starlette.responses import HTMLResponse
    from whisper_nb.mirror import running
    with running(HTMLResponse('<h1>Welcome to the hotel</h1>')) as endpoint:
        monkeypatch.setenv('WHISPER_NB_DRIVE_ENDPOINT', endpoint)
        with pytest.raises(StepError, match='what answered is not Google Drive'): DriveStore(parse_address('gdrive://root')).describe('x')

def test_nobody_answers(drive, monkeypatch):
    from whisper_nb.mirror import running
    with running(drive) as endpoint: pass
    monkeypatch.setenv('WHISPER_NB_DRIVE_ENDPOINT', endpoint)
    with pytest.raises(PassingError, match='connection to Google Drive failed'): DriveStore(parse_address('gdrive://root')).describe('x')

def test_service_account(drive, tmp_path, monkeypatch, caplog, capfd, whisper_nb):
    "Its token goes with every request, and is in no message, whatever goes wrong."
    caplog.set_level(logging.DEBUG, logger='whisper_nb')
    drive.token = 'ya29.very-secret'
    monkeypatch.setenv('GOOGLE_APPLICATION_CREDENTIALS', str(service_account(tmp_path/'key.json', drive.endpoint)))
    store = DriveStore(parse_address('gdrive://root'), waits=NOW)
    drive.fail('PUT', 'upload_id', ('keep', 0))
    store.write_bytes(b'mine', 'x')
    assert contents(store, 'x') == b'mine' and all(headers['authorization'] == 'Bearer ya29.very-secret' for _, path, headers in drive.requests if path != '/token?')
    drive.fail('GET', 'alt=media', ('status', 403, 'cannotDownloadFile'))
    with pytest.raises(StepError, match='cannotDownloadFile') as refused: contents(store, 'x')
    drive.fail('GET', 'q=', *[('status', 403, 'cannotDownloadFile')] * 9)
    done = whisper_nb('restore', 'gdrive://root/toy', WHISPER_NB_DEBUG='1')
    assert done.returncode == 1 and 'cannotDownloadFile' in done.stderr
    drive.rules.clear()
    drive.revoked = True
    with pytest.raises(StepError, match='expired or were revoked') as revoked: DriveStore(parse_address('gdrive://root')).describe('x')
    everything = ''.join([str(explain(refused.value)), repr(revoked.value), str(explain(revoked.value)), done.stdout, done.stderr, caplog.text, *capfd.readouterr()])
    for secret in ('very-secret', 'secret-assertion', 'PRIVATE KEY', 'upload_id'): assert secret not in everything

@pytest.mark.parametrize('key', [None, '{}', 'not JSON', '{"type": "service_account"}', '{"type": "service_account", "client_email": "a", "token_uri": "b", "private_key": "very-secret"}'])
def test_no_credentials(drive, tmp_path, monkeypatch, key):
    monkeypatch.delenv('WHISPER_NB_DRIVE_ENDPOINT')
    for name, value in dict(HOME=tmp_path, CLOUDSDK_CONFIG=tmp_path/'gcloud').items(): monkeypatch.setenv(name, str(value))
    if key is not None:
        (tmp_path/'key.json').write_text(key)
        monkeypatch.setenv('GOOGLE_APPLICATION_CREDENTIALS', str(tmp_path/'key.json'))
    with pytest.raises(StepError, match='no Google credentials were found' if key is None else 'names no credentials that can be used') as error: DriveStore(parse_address('gdrive://root'))
    assert 'very-secret' not in ''.join(traceback.format_exception(error.value)) and 'GOOGLE_APPLICATION_CREDENTIALS' in explain(error.value).advice

def test_credentials_are_not_sent_in_the_clear(drive, tmp_path, monkeypatch):
    monkeypatch.setenv('GOOGLE_APPLICATION_CREDENTIALS', str(service_account(tmp_path/'key.json', drive.endpoint)))
    monkeypatch.setenv('WHISPER_NB_DRIVE_ENDPOINT', 'http://drive.example.invalid')
    with pytest.raises(RequestError, match='plain http'): DriveStore(parse_address('gdrive://root'))

def test_without_the_package(tmp_path):
    code = '''if True:
        import sys
        for name in ('googleapiclient', 'google.auth'): sys.modules[name] = None
        from whisper_nb.addresses import parse_address
        from whisper_nb.errors import explain
        from whisper_nb.google_drive import DriveStore
        try: DriveStore(parse_address('gdrive://root'))
        except Exception as error: print(type(error).__name__, explain(error))'''
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.startswith('MissingPackage') and "pip install 'whisper_nb[gdrive]'" in out

def test_importing_is_cheap():
    code = 'import sys, whisper_nb.google_drive; print([name for name in ("googleapiclient", "google.auth", "httplib2") if name in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
