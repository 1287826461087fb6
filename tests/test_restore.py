"From a store to a directory: what comes back, what is fetched for it, cuts, kills, damage, lies, memory and disk."
import json, logging, os, random, shutil, signal, subprocess, sys, threading, time
from dataclasses import replace
from pathlib import Path

import pytest

from servers import BUCKET, cutting_proxy, http_server, s3rver
from test_pack import NAME, contents, make_model, visible

from whisper_nb.errors import ChangedError, CheckError, RequestError, WhisperNbError
from whisper_nb.files import locked, read_manifest
from whisper_nb.pack import pack
from whisper_nb.restore import LATEST_NAME, PREFIX, RECORD_NAME, Publication, parse_publication, restore
from whisper_nb.stores import HEAD, open_store

def put(model, url, outputs, format='tar.gz', **changes):
    "An archive in a store as `publish` puts it there, without its proofs."
    archive = pack(model, outputs, format=format)
    version = archive.sha256[:PREFIX]
    record = Publication(model.name, f'{version}/{archive.path.name}', archive.bytes, archive.sha256, read_manifest(model).sha256, '2026-11-21T09:30:00Z')
    data, store = replace(record, **changes).to_json().encode(), open_store(url)
    for ending in ('', '.md5', '.sha256'): store.write(Path(f'{archive.path}{ending}'), f'{model.name}/{version}/{archive.path.name}{ending}', lambda count: None)
    for path in (f'{model.name}/{version}/{RECORD_NAME}', f'{model.name}/{LATEST_NAME}'): store.write_bytes(data, path)
    return record

def refused(kind, words, *arguments, **options):
    "The error must be ours and say this."
    with pytest.raises(kind, match=words or None) as caught: restore(*arguments, **options)
    assert caught.value.what and caught.value.advice
    return caught.value

@pytest.fixture
def model(tmp_path): return make_model(tmp_path/'made'/NAME, 4_000_000)

@pytest.fixture
def record(model): return put(model, 'store', 'outputs')

# What a URL means

@pytest.mark.parametrize('format', ['tar.gz', 'tar.zst', 'tar'])
def test_three_kinds_of_url(format, model):
    record = put(model, 'store', 'outputs', format)
    for number, url in enumerate([f'store/{NAME}', f'store/{NAME}/', f'store/{NAME}/{record.version}', f'store/{NAME}/{record.archive}', Path('store').absolute().as_uri() + f'/{NAME}']):
        restored = restore(url, f'dest{number}')
        assert restored.path == Path(f'dest{number}')/NAME and contents(restored.path) == contents(model)
        assert (restored.reused, restored.fetched, restored.signed, restored.forced) == (False, record.bytes, 'no', None)
        assert record.archive.split('/')[1] in restored.url

def test_versions_are_kept_apart(model, tmp_path):
    newer = make_model(tmp_path/'newer'/NAME, 2_000_000, seed=2)
    first, second = put(model, 'store', 'outputs'), put(newer, 'store', 'outputs')
    assert contents(restore(f'store/{NAME}').path) == contents(newer)
    assert contents(restore(f'store/{NAME}/{first.version}').path) == contents(model)
    assert contents(restore(f'store/{NAME}/{second.version}').path) == contents(newer)
    assert visible(Path('models')) == [NAME]

def test_an_archive_that_was_only_copied_somewhere(model):
    "Without a record; with one checksum file, with none; in the directory of its version, with checksums and without."
    archive = pack(model, 'outputs')
    version = archive.sha256[:PREFIX]
    for endings, place in ((('', '.sha256'), 'one'), (('', '.md5'), 'two'), (('',), 'three'), (('', '.sha256'), f'four/{NAME}/{version}'), (('',), f'five/{NAME}/{version}')):
        Path(place).mkdir(parents=True)
        for ending in endings: shutil.copy(f'{archive.path}{ending}', place)
        assert contents(restore(f'{place}/{archive.path.name}', f'dest {place[:3]}').path) == contents(model)
    for place in ('four', 'five'): assert contents(restore(f'{place}/{NAME}/{version}', f'dest of {place}').path) == contents(model)

def test_a_version_is_what_it_says(model):
    "The archive in the directory of a version has to be of that version, whatever lies beside it."
    archive = pack(model, 'outputs')
    for number, endings in enumerate([('',), ('', '.md5'), ('', '.sha256')]):
        place = Path(f'{number}/{NAME}/0123456789ab')
        place.mkdir(parents=True)
        for ending in endings: shutil.copy(f'{archive.path}{ending}', place)
        for url in (str(place), f'{place}/{NAME}.tar.gz'): refused(CheckError, 'another', url, 'dest')
    assert not visible(Path('dest'))

def test_an_archive_is_called_after_its_model(model):
    "So it cannot bring another model than the one that was named, and take the place of one that is there."
    shutil.copy(pack(model, 'outputs').path, 'other-ct2-int8.tar.gz')
    assert f'rename it to {NAME}.tar.gz' in refused(CheckError, f"it holds '{NAME}'", 'other-ct2-int8.tar.gz', 'dest').advice
    assert not visible(Path('dest'))

def test_from_inside_the_store(record, model, monkeypatch):
    for place, url in ((f'store/{NAME}', '.'), (f'store/{NAME}', record.version), (f'store/{NAME}/{record.version}', f'{NAME}.tar.gz')):
        with monkeypatch.context() as patch:
            patch.chdir(place)
            assert contents(restore(url, 'dest').path) == contents(model)
            shutil.rmtree('dest')

def test_a_record_in_the_wrong_place(record, tmp_path):
    "Copied to another version's directory, it says nothing about that one."
    other = put(make_model(tmp_path/'newer'/NAME, 100_000, seed=2), 'store', 'outputs')
    shutil.copy(f'store/{NAME}/{record.version}/{RECORD_NAME}', f'store/{NAME}/{other.version}/{RECORD_NAME}')
    assert read_manifest(restore(f'store/{NAME}/{other.version}', 'dest').path).sha256 == other.manifest_sha256

def test_nothing_there(record):
    for url in ('store', 'store/other', f'store/{NAME}/000000000000', 'nowhere', f'store/{NAME}/nothing.tar.gz'):
        assert 'STORE/MODEL' in refused(RequestError, 'no published model', url, 'dest').advice
    assert not visible(Path('dest'))

def test_command(record, model, whisper_nb):
    done = whisper_nb('restore', f'store/{NAME}', 'dest', '--json')
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said['path'], said['bytes'], said['fetched'], said['reused']) == (f'dest/{NAME}', read_manifest(model).size, record.bytes, False)
    again = whisper_nb('restore', f'store/{NAME}', 'dest')
    assert again.returncode == 0 and 'already there' in again.stdout
    for url in ('store/other', 'ftp://host/x'):
        done = whisper_nb('restore', url)
        assert done.returncode == 2 and 'Traceback' not in done.stderr and '\n→ ' in done.stderr

# Nothing is fetched that is there

def test_already_there(record, model):
    restore(f'store/{NAME}')
    again = restore(f'store/{NAME}')
    assert again.reused and again.fetched <= HEAD
    (Path('models')/NAME/'model.bin').write_bytes(b'spoiled')
    mended = restore(f'store/{NAME}')
    assert not mended.reused and mended.fetched == record.bytes and contents(mended.path) == contents(model)

CHILD = f'''
import sys
from whisper_nb.restore import restore
done = restore({f"store/{NAME}"!r})
print(done.reused, done.fetched)
'''

def test_two_at_once(tmp_path):
    "Whoever comes second waits, then finds the model there."
    record = put(make_model(tmp_path/'made'/NAME, 30_000_000), 'store', 'outputs')
    with locked(Path('models')/NAME): # so that both are under way
        runs = [subprocess.Popen([sys.executable, '-c', CHILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        waiting = [run.stderr.readline() for run in runs]
    outputs = sorted(run.communicate(timeout=60)[0].split() for run in runs)
    assert all('waiting' in line for line in waiting), waiting
    assert outputs[0] == ['False', str(record.bytes)] and outputs[1][0] == 'True' and int(outputs[1][1]) <= HEAD
    assert contents(Path('models')/NAME) == contents(tmp_path/'made'/NAME)

# A network that fails

def cuts(size, seed):
    "Ten connections that end after a part of what would come over them."
    generator = random.Random(seed)
    return [generator.randrange(1, size // 12) for _ in range(10)]

def test_ten_cuts_http(tmp_path):
    model = make_model(tmp_path/'made'/NAME, 80_000_000)
    record = put(model, 'store', 'outputs')
    with http_server(Path('store')) as server, cutting_proxy(server.port, cuts(record.bytes, 1)) as proxy:
        restored = restore(f'http://127.0.0.1:{proxy.port}/{NAME}')
        assert proxy.cut == 10
    assert contents(restored.path) == contents(model)

def test_ten_cuts_without_ranges(tmp_path):
    "Begun again each time. Some of the connections are for the small files, and are not cut."
    model = make_model(tmp_path/'made'/NAME, 24_000_000)
    put(model, 'store', 'outputs', 'tar')
    with http_server(Path('store'), ranges=False) as server, cutting_proxy(server.port, [1_300_000 * number for number in range(1, 17)]) as proxy:
        restored = restore(f'http://127.0.0.1:{proxy.port}/{NAME}')
        assert proxy.cut >= 10
    assert contents(restored.path) == contents(model)

def test_ten_cuts_s3(tmp_path, monkeypatch):
    model = make_model(tmp_path/'made'/NAME, 80_000_000)
    with s3rver(tmp_path/'buckets') as server:
        for name, value in server.environment.items(): monkeypatch.setenv(name, value)
        record = put(model, f's3://{BUCKET}/models', 'outputs')
        with cutting_proxy(server.port, cuts(record.bytes, 2)) as proxy:
            monkeypatch.setenv('AWS_ENDPOINT_URL', f'http://127.0.0.1:{proxy.port}')
            restored = restore(f's3://{BUCKET}/models/{NAME}')
            assert proxy.cut == 10
    assert contents(restored.path) == contents(model)

RESTORING = '''
import sys, threading
from whisper_nb import restore as module
from whisper_nb.unpack import unpack_from
def watched(reader, *arguments, **options):
    read = reader.read
    def tell(size):
        data = read(size)
        if reader.fetched > 3_000_000:
            reader.read = read
            print('now', flush=True)
            input()
        return data
    reader.read = tell
    return unpack_from(reader, *arguments, **options)
module.unpack_from = watched
module.restore(sys.argv[1], 'dest')
'''

def test_ctrl_c_on_a_line_that_stalls(tmp_path):
    "It need not wait for what will not come, and leaves nothing."
    from conftest import listen_to_ctrl_c
    put(make_model(tmp_path/'made'/NAME, 200_000_000), 'store', 'outputs', 'tar')
    with http_server(Path('store')) as server, cutting_proxy(server.port) as line:
        child = subprocess.Popen([sys.executable, '-c', RESTORING, f'{line.url}/{NAME}'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c)
        assert child.stdout.readline() == 'now\n'
        line.stall()
        child.stdin.write('\n')
        child.stdin.flush()
        time.sleep(1)
        child.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, errors = child.communicate(timeout=30)
    assert child.returncode and 'KeyboardInterrupt' in errors and time.monotonic() - start < 5, errors
    assert not visible(Path('dest')) and not list(Path('dest').glob('.staging/*'))

# Damage

def archive_of(record): return Path('store')/NAME/record.archive

def flip(path, position, bit=1):
    data = bytearray(path.read_bytes())
    data[position] ^= bit
    path.write_bytes(data)

@pytest.mark.parametrize('spoil', ['weights', 'manifest', 'end', 'cut', 'cut short', 'longer', 'empty', 'another'])
@pytest.mark.parametrize('known', [True, False], ids=['record', 'no record'])
def test_damaged_archive(spoil, known, record, tmp_path):
    path = archive_of(record)
    if spoil == 'weights': flip(path, record.bytes // 2)
    elif spoil == 'manifest': flip(path, 60)
    elif spoil == 'end': flip(path, -5)
    elif spoil == 'cut': path.write_bytes(path.read_bytes()[:-1])
    elif spoil == 'cut short': path.write_bytes(path.read_bytes()[:300])
    elif spoil == 'longer': path.write_bytes(path.read_bytes() + b'x')
    elif spoil == 'empty': path.write_bytes(b'')
    else: shutil.copy(pack(make_model(tmp_path/'another'/NAME, 2_000_000, seed=5), tmp_path/'another').path, path)
    if not known:
        for each in path.parent.iterdir():
            if each != path: each.unlink()
    url = f'store/{NAME}' if known else f'store/{NAME}/{record.archive}'
    refused(CheckError, '', url, 'dest')
    assert not visible(Path('dest')) and not list(Path('dest').glob('.staging/*'))

def test_a_bit_in_a_bucket(model, tmp_path, monkeypatch):
    "Flipped in the object that the S3 server keeps."
    with s3rver(tmp_path/'buckets') as server:
        for name, value in server.environment.items(): monkeypatch.setenv(name, value)
        record = put(model, f's3://{BUCKET}/models', 'outputs')
        stored = next(path for path in (tmp_path/'buckets').rglob(f'*{NAME}.tar.gz*') if path.is_file() and path.stat().st_size == record.bytes)
        for position in (40, record.bytes // 2, record.bytes - 3):
            flip(stored, position)
            for url in (NAME, f'{NAME}/{record.version}', f'{NAME}/{record.archive}'): refused(CheckError, '', f's3://{BUCKET}/models/{url}', 'dest')
            flip(stored, position)
        assert not visible(Path('dest')) and not list(Path('dest').glob('.staging/*'))
        assert contents(restore(f's3://{BUCKET}/models/{NAME}', 'dest').path) == contents(model)

def test_damage_does_not_touch_what_is_there(record, model, whisper_nb):
    "From outside: exit code 1, two lines, the old model as it was."
    restore(f'store/{NAME}')
    (Path('models')/NAME/'config.json').write_text('[]') # so that it is not simply there
    before = contents(Path('models')/NAME)
    flip(archive_of(record), record.bytes // 2)
    done = whisper_nb('restore', f'store/{NAME}')
    assert done.returncode == 1 and 'Traceback' not in done.stderr and done.stderr.splitlines()[-1].startswith('→ ')
    assert contents(Path('models')/NAME) == before and visible(Path('models')) == [NAME]

def test_damaged_checksum_file(record):
    path = archive_of(record)
    for position in (3, 40, 66, -3):
        flip(path.with_name(f'{path.name}.sha256'), position)
        refused(CheckError, '', f'store/{NAME}/{record.version}', 'dest')
        refused(CheckError, '', f'store/{NAME}/{record.archive}', 'dest')
        flip(path.with_name(f'{path.name}.sha256'), position)
    assert not visible(Path('dest'))
    assert restore(f'store/{NAME}/{record.version}', 'dest').path.is_dir()

def test_any_bit_of_latest(record):
    "Refused, or without meaning: then the model is the right one."
    path, generator, harmless = Path('store')/NAME/LATEST_NAME, random.Random(3), 0
    right = path.read_bytes()
    for _ in range(30):
        flip(path, generator.randrange(len(right)), 1 << generator.randrange(8))
        try: restored = restore(f'store/{NAME}', 'dest')
        except WhisperNbError: pass
        else:
            harmless += 1
            assert read_manifest(restored.path).sha256 == record.manifest_sha256
        path.write_bytes(right)
    assert harmless < 15 # the time, white space

# Lies

GOOD = Publication('toy', f"{'a' * 12}/toy.tar.gz", 10, 'a' * 64, 'b' * 64, '2026-11-21T09:30:00Z')
LIES = {'outside': dict(archive='../toy.tar.gz'), 'absolute': dict(archive='/etc/toy.tar.gz'), 'another version': dict(archive=f"{'b' * 12}/toy.tar.gz"), 'another name': dict(archive=f"{'a' * 12}/other.tar.gz"),
    'another scheme': dict(archive='http://host/toy.tar.gz'), 'not an archive': dict(archive=f"{'a' * 12}/toy.zip"), 'path as a model': dict(model='../toy', archive=f"{'a' * 12}/../toy.tar.gz"), 'no bytes': dict(bytes=0),
    'true bytes': dict(bytes=True), 'text for bytes': dict(bytes='10'), 'short digest': dict(sha256='a' * 63), 'capital digest': dict(sha256='A' * 64), 'number for digest': dict(manifest_sha256=7), 'a number for a reason': dict(forced=1),
    'text for signed': dict(signed='yes'), 'no time': dict(published=None)}

@pytest.mark.parametrize('lie', LIES)
def test_lies(lie):
    assert parse_publication(GOOD.to_json().encode()) == GOOD
    with pytest.raises(CheckError, match='broken'): parse_publication(replace(GOOD, **LIES[lie]).to_json().encode())

@pytest.mark.parametrize('data', [b'', b'{', b'[]', b'null', b'7', b'\xff\xfe', b'{"version": 1}', GOOD.to_json().replace('"version": 1', '"version": 2').encode(), b'[' * 50_000, b'"' + b'a' * 60_000 + b'"'])
def test_no_records(data):
    with pytest.raises(CheckError, match='broken'): parse_publication(data)

def test_later_fields_are_no_obstacle():
    assert parse_publication(json.dumps(json.loads(GOOD.to_json()) | dict(colour='blue')).encode()) == GOOD

def test_web_pages(record):
    "A server that answers everything with its sign-in page."
    page = '<!DOCTYPE html><html><title>Sign in</title></html>'
    for path in Path('store').rglob('*'):
        if path.is_file(): path.write_text(page)
    refused(CheckError, 'web page', f'store/{NAME}', 'dest')
    for path in Path('store').rglob('*.json'): path.unlink()
    refused(CheckError, '', f'store/{NAME}/{record.archive}', 'dest')
    for path in (*Path('store').rglob('*.md5'), *Path('store').rglob('*.sha256')): path.unlink()
    refused(CheckError, '', f'store/{NAME}/{record.archive}', 'dest')
    assert not visible(Path('dest'))

def test_another_model(record, tmp_path):
    other = make_model(tmp_path/'made'/'other-ct2-int8', 100_000)
    put(other, 'store', 'outputs')
    shutil.copy(f'store/{NAME}/{LATEST_NAME}', f'store/other-ct2-int8/{LATEST_NAME}')
    refused(CheckError, 'another model', 'store/other-ct2-int8', 'dest')
    # a record that is consistent, over an archive that holds another model
    archive = pack(other, 'outputs')
    lie = replace(record, archive=f'{archive.sha256[:PREFIX]}/{NAME}.tar.gz', sha256=archive.sha256, bytes=archive.bytes)
    place = Path('store')/NAME/lie.version
    place.mkdir()
    shutil.copy(archive.path, place/f'{NAME}.tar.gz')
    (Path('store')/NAME/LATEST_NAME).write_text(lie.to_json())
    refused(CheckError, 'other-ct2-int8', f'store/{NAME}', 'dest')
    assert not visible(Path('dest'))

def test_large_latest(record):
    (Path('store')/NAME/LATEST_NAME).write_bytes(bytes(1_000_000))
    refused(CheckError, 'are expected', f'store/{NAME}', 'dest')

def test_replaced_while_it_is_read(tmp_path, caplog):
    "The halves of two archives are no model: an error, and nothing there."
    one, other = [make_model(tmp_path/str(seed)/NAME, 60_000_000, seed) for seed in (1, 2)]
    record, error = put(one, 'store', 'outputs'), []
    for each in archive_of(record).parent.iterdir():
        if not each.name.endswith('.gz'): each.unlink()
    def run():
        try: restore(f'store/{NAME}/{record.archive}', 'dest')
        except Exception as raised: error.append(raised)
    with locked(Path('dest')/NAME):
        thread = threading.Thread(target=run)
        thread.start()
        while not any('waiting' in line.message for line in caplog.records): time.sleep(0.01) # it has read the beginning
        new = pack(other, tmp_path/'2'/'outputs').path
        os.replace(shutil.copy(new, 'new'), archive_of(record))
    thread.join(60)
    assert isinstance(error[0], ChangedError), error
    assert not visible(Path('dest')) and not list(Path('dest').glob('.staging/*'))

def test_forced_is_said(model, caplog, whisper_nb):
    record = put(model, 'store', 'outputs', forced='it does not verify:\n\x1b[31m tokenizer.json is missing')
    for url in (f'store/{NAME}', f'store/{NAME}/{record.version}', f'store/{NAME}/{record.archive}'):
        caplog.clear()
        restored = restore(url)
        assert restored.forced == 'it does not verify: �[31m tokenizer.json is missing' and restored.forced in repr(restored)
        assert any('was published although' in line.message and line.levelno == logging.WARNING for line in caplog.records)
    assert 'was published although it does not verify' in whisper_nb('restore', f'store/{NAME}').stderr

def test_untested_is_said(model, whisper_nb):
    put(model, 'store', 'outputs', tested=False)
    assert restore(f'store/{NAME}').tested is False and 'not before it was published' in whisper_nb('restore', f'store/{NAME}').stdout
    put(model, 'store', 'outputs')
    assert restore(f'store/{NAME}').tested is True and 'it transcribed offline' in repr(restore(f'store/{NAME}'))
    assert restore(str(pack(model, 'outputs').path), 'dest').tested is None

# Who signed it

@pytest.fixture(scope='module')
def keys(tmp_path_factory):
    "Two pairs of keys: paths of the private and the public half."
    place = tmp_path_factory.mktemp('keys')
    for name in ('ours', 'theirs'):
        subprocess.run(['openssl', 'ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', place/f'{name}.pem'], check=True, capture_output=True)
        subprocess.run(['openssl', 'ec', '-in', place/f'{name}.pem', '-pubout', '-out', place/f'{name}.pub'], check=True, capture_output=True)
    return place

def test_signed(model, keys):
    from whisper_nb.signing import sign
    put(model, 'unsigned', 'outputs')
    refused(CheckError, 'sign', f'unsigned/{NAME}', 'dest', public_key=str(keys/'ours.pub'))
    sign(model, keys/'ours.pem')
    put(model, 'store', 'outputs', signed=True)
    refused(CheckError, '', f'store/{NAME}', 'dest', public_key=str(keys/'theirs.pub'))
    assert not visible(Path('dest'))
    assert restore(f'store/{NAME}', 'dest').signed == 'not checked'
    checked = restore(f'store/{NAME}', 'dest', public_key=str(keys/'ours.pub'))
    assert checked.signed == 'checked' and checked.reused and checked.fetched <= HEAD
    assert restore(f'store/{NAME}', 'fresh', public_key=str(keys/'ours.pub')).signed == 'checked'
    assert contents(Path('fresh')/NAME) == contents(model)

def test_a_signature_that_was_taken_away(model):
    "The record says signed, the archive has no signature: not what was published, with a key or without."
    put(model, 'store', 'outputs', signed=True)
    refused(CheckError, 'signed when it was published', f'store/{NAME}', 'dest')
    assert not visible(Path('dest'))

def test_signed_under_another_name(model, keys):
    "The directory's name is not signed: who has the store could offer any signed model as another one."
    from whisper_nb.signing import sign
    sign(model, keys/'ours.pem')
    renamed = Path(shutil.copytree(model, 'renamed/other-ct2-int8'))
    put(renamed, 'store', 'outputs')
    refused(CheckError, f"what was signed in it is '{NAME}', not 'other-ct2-int8'", 'store/other-ct2-int8', 'dest', public_key=str(keys/'ours.pub'))
    assert not visible(Path('dest'))

def test_the_unsigned_is_not_taken_for_the_signed(model, keys):
    "The model is there, unsigned; only the signed one will do."
    from whisper_nb.signing import sign
    put(model, 'unsigned', 'outputs')
    restore(f'unsigned/{NAME}')
    refused(CheckError, 'sign', f'unsigned/{NAME}', public_key=str(keys/'ours.pub'))
    sign(model, keys/'ours.pem')
    put(model, 'store', 'outputs', signed=True)
    restored = restore(f'store/{NAME}', public_key=str(keys/'ours.pub'))
    assert restored.signed == 'checked' and contents(restored.path) == contents(model)

# Memory and disk

MEASURED = '''
import sys, threading, time
from pathlib import Path
import obstore, httpx2
from whisper_nb.restore import restore
def peak(): return [int(line.split()[1]) * 1024 for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM')][0]
def used(path):
    total = 0
    for each in Path(path).rglob('*'):
        try: total += each.stat().st_blocks * 512
        except OSError: pass
    return total
most, over = 0, threading.Event()
def watch():
    global most
    while not over.wait(0.01): most = max(most, used('dest'))
threading.Thread(target=watch, daemon=True).start()
before = peak()
done = restore(sys.argv[1], 'dest')
over.set()
print(peak() - before, most - used(done.path), done.fetched)
'''

@pytest.fixture(scope='module')
def large(tmp_path_factory):
    "A model of 200 MB that cannot be compressed, and the directory it is published in."
    place = tmp_path_factory.mktemp('large')
    model = make_model(place/'made'/NAME, files={'model.bin': random.Random(1).randbytes(200_000_000)})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return model, place/'store', put(model, 'store', 'outputs', 'tar')

def little(url, record, **environment):
    "Restoring takes little memory, and writes nothing but the model."
    done = subprocess.run([sys.executable, '-c', MEASURED, url], capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    memory, disk, fetched = map(int, done.stdout.split())
    assert memory < 150_000_000 and disk < 1_000_000 and fetched == record.bytes, (memory, disk, fetched)

def test_memory_and_disk(large): little(f'{large[1]}/{NAME}', large[2])

def test_memory_and_disk_http(large):
    with http_server(large[1]) as server: little(f'{server.url}/{NAME}', large[2])

def test_memory_and_disk_s3(large, tmp_path, monkeypatch):
    with s3rver(tmp_path/'buckets') as server:
        for name, value in server.environment.items(): monkeypatch.setenv(name, value)
        little(f's3://{BUCKET}/some/{NAME}', put(large[0], f's3://{BUCKET}/some', large[1].parent/'outputs', 'tar'))
