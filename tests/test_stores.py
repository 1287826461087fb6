"Stores over real servers: the same bytes come back, of one version; what breaks on the way costs a piece; errors never show a key."
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest
import servers
from servers import BUCKET, answering, cutting_proxy, fake_gcs_server, http_server, moto_server, s3rver

from whisper_nb.addresses import parse_address
from whisper_nb.errors import ChangedError, MissingPackage, PassingError, RequestError, StepError, explain
from whisper_nb.object_store import PIECE, ObjectStore
from whisper_nb.stores import HEAD, find, hash_stored, open_store, read_ahead, read_small

QUICK = (0.02, 0.02)  # seconds between tries
LARGE = 9 * 2**20 + 1
SECRET = 'a-secret-nobody-may-see'

@pytest.fixture(scope='module')
def moto():
    with moto_server() as server: yield server

@pytest.fixture(scope='module')
def google(moto): return servers.as_google(moto)

@pytest.fixture(scope='module')
def fast(tmp_path_factory):
    with s3rver(tmp_path_factory.mktemp('s3rver')) as server: yield server

@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    "No account of this machine is used."
    for name in list(os.environ):
        if name.startswith(('AWS_', 'GOOGLE_', 'STORAGE_EMULATOR')): monkeypatch.delenv(name)
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')

@pytest.fixture
def use(monkeypatch):
    "Set the environment of a server."
    def use(server):
        for name, value in server.environment.items(): monkeypatch.setenv(name, value)
        return server
    return use

@pytest.fixture
def place(request, tmp_path, use):
    "The URL of an empty place in each kind of store."
    kind = request.param
    if kind == 'file': return tmp_path / 'stored'
    use(request.getfixturevalue(dict(s3='moto', s3rver='fast', gs='google')[kind]))
    return f"{'gs' if kind == 'gs' else 's3'}://{BUCKET}/{request.node.name.partition('[')[0]}/{kind}"

STORES = pytest.mark.parametrize('place', ['file', 's3', 's3rver', 'gs'], indirect=True)

@pytest.fixture(scope='session')
def content(): return os.urandom(LARGE)

def two_lines(error):
    problem = explain(error)
    assert problem.what and problem.advice and '\n' not in problem.what + problem.advice
    return f'{problem.what} → {problem.advice}'

# ---- there and back

@STORES
def test_everything_comes_back(place, content, tmp_path):
    store = open_store(place)
    for size in (0, 1, LARGE):
        (tmp_path / 'one').write_bytes(content[:size])
        sent = []
        store.write(tmp_path / 'one', f'v1/{size}.tar.gz', sent.append)
        stored = store.describe(f'v1/{size}.tar.gz')
        assert (stored.size, sum(sent)) == (size, size)
        assert b''.join(store.blocks(stored)) == content[:size]
        with read_ahead(store, stored) as reader: assert reader.read() == content[:size]
        assert hash_stored(store, stored) == sha256(content[:size]).hexdigest()
    stored = store.describe(f'v1/{LARGE}.tar.gz')
    assert store.read(stored, LARGE - 5, 5) == content[-5:] and store.read(stored, HEAD, 9) == content[HEAD:HEAD + 9]
    assert store.describe('v1/other.tar.gz') is None and store.describe('v1') is None
    assert open_store(store.address / 'v1').describe(f'{LARGE}.tar.gz').size == LARGE
    store.write_bytes(b'{}', 'latest.json')
    store.write_bytes(b'{"version": 1}', 'latest.json')
    assert read_small(store, 'latest.json') == b'{"version": 1}'

@STORES
def test_a_change_between_two_pieces_is_noticed(place, content):
    store = open_store(place)
    store.write_bytes(content, 'toy.tar')
    stored = store.describe('toy.tar')
    with read_ahead(store, stored, QUICK) as reader:
        assert reader.read(100) == content[:100]
        store.write_bytes(content[::-1], 'toy.tar')
        with pytest.raises(ChangedError): reader.read()
    with pytest.raises(ChangedError): store.read(stored, 0, 100)
    with pytest.raises(ChangedError): b''.join(store.blocks(stored))

def test_a_google_server_with_generations(use, content):
    with fake_gcs_server() as (server, put):
        use(server)
        put('v1/toy.tar', content)
        store = open_store(f'gs://{BUCKET}/v1')
        stored = store.describe('toy.tar')
        with read_ahead(store, stored) as reader: assert reader.read() == content
        put('v1/toy.tar', content[::-1])
        with pytest.raises(ChangedError): store.read(stored, 0, 100)
        assert store.describe('other.tar') is None

@pytest.mark.parametrize('ranges', [True, False])
def test_the_web(tmp_path, content, ranges, use):
    (tmp_path / 'a b+c').mkdir()
    (tmp_path / 'a b+c' / 'toy.tar.gz').write_bytes(content)
    (tmp_path / 'empty').touch()
    with http_server(tmp_path, ranges) as server:
        store = open_store(f'{server.url}/a%20b+c')
        stored = store.describe('toy.tar.gz')
        assert (stored.size, stored.ranges, store.writable) == (LARGE, ranges, False)
        with read_ahead(store, stored) as reader: assert reader.read() == content
        assert open_store(f'{server.url}/a%20b+c/toy.tar.gz').describe('').size == LARGE
        assert open_store(server.url).describe('empty').size == 0
        assert open_store(server.url).describe('other') is None
        os.utime(tmp_path / 'a b+c' / 'toy.tar.gz', (0, 10**9))
        with pytest.raises(ChangedError), read_ahead(store, stored) as reader: reader.read()

def test_little_is_asked_for_before_more_is_wanted(tmp_path, content):
    (tmp_path / 'toy.tar').write_bytes(content)
    with http_server(tmp_path) as server, cutting_proxy(server.port) as line:
        store = open_store(line.url)
        stored = store.describe('toy.tar')
        with read_ahead(store, stored) as reader: reader.read(HEAD)
        assert (reader.fetched, line.sent < HEAD + 10_000) == (HEAD, True)

# ---- a bad line

@pytest.mark.parametrize('ranges', [True, False])
def test_cuts(tmp_path, content, ranges):
    (tmp_path / 'toy.tar').write_bytes(content)
    cuts = [200, 1_000, HEAD, 2_000_000, 10, 3_000_000, 5_000_000, 700_000]
    with http_server(tmp_path, ranges) as server, cutting_proxy(server.port, cuts if ranges else [2_000_000, 10, 5_000_000]) as line:
        store = open_store(line.url)
        with read_ahead(store, find(store, 'toy.tar', QUICK), (0.01,) * 8) as reader: assert reader.read() == content
        assert not line.left and line.cut

def test_a_line_that_always_breaks_after_a_while(tmp_path, content):
    "Smaller pieces come through."
    (tmp_path / 'toy.tar').write_bytes(content)
    with http_server(tmp_path) as server, cutting_proxy(server.port, [400_000] * 200) as line:
        store = open_store(line.url)
        with read_ahead(store, find(store, 'toy.tar', QUICK), (0.01,) * 5) as reader: assert reader.read() == content
        assert line.cut > 10 and line.sent < 4 * LARGE

def test_s3_over_a_line_that_breaks(fast, use, monkeypatch, content):
    use(fast)
    open_store(f's3://{BUCKET}').write_bytes(content, 'line/toy.tar')
    with cutting_proxy(fast.port, [50_000, 400_000, 3_000_000, 10]) as line:
        monkeypatch.setenv('AWS_ENDPOINT_URL', line.url)
        store = open_store(f's3://{BUCKET}/line')
        with read_ahead(store, find(store, 'toy.tar', QUICK), (0.01,) * 5) as reader: assert reader.read() == content
        assert not line.left

def test_an_upload_over_a_line_that_breaks(moto, use, monkeypatch, content, tmp_path):
    use(moto)
    (tmp_path / 'toy.tar').write_bytes(content)
    sent = []
    with cutting_proxy(moto.port, [10, 400, 10]) as line:  # 400: in the middle of the answer that begins an upload, which obstore does not try again
        monkeypatch.setenv('AWS_ENDPOINT_URL', line.url)
        store = open_store(f's3://{BUCKET}/upload')
        store.write(tmp_path / 'toy.tar', 'toy.tar', sent.append)
        assert line.cut == 3 and sum(sent) == LARGE and hash_stored(store, find(store, 'toy.tar', QUICK)) == sha256(content).hexdigest()

def test_nobody_there(monkeypatch, use, moto):
    use(moto)
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', SECRET)
    monkeypatch.setenv('AWS_ENDPOINT_URL', f'http://{SECRET}:{SECRET}@127.0.0.1:{servers.free_port()}')
    with pytest.raises(PassingError, match='does not answer') as raised: find(open_store(f's3://{BUCKET}'), 'x', QUICK)
    assert SECRET not in two_lines(raised.value)

# ---- what servers say

BUSY = (503, {}, b'<Error><Code>SlowDown</Code></Error>')

def ranged(data, start=0, end=1, **headers):
    "A right answer to a request for a part."
    return 206, {'content-range': f'bytes {start}-{end}/{len(data)}', 'etag': '"1"', 'last-modified': 'Sat, 21 Nov 2026 10:00:00 GMT', **headers}, data[start:end + 1]

def test_busy_is_tried_again(caplog):
    with answering(BUSY, (429, {}, b''), ranged(b'0123456789')) as server:
        assert find(open_store(server.url), 'x', QUICK).size == 10
        assert [record.getMessage().partition(' ')[2] for record in caplog.records] == ['is busy or failing (HTTP 503, SlowDown); trying again in 0.02 s', 'is busy or failing (HTTP 429); trying again in 0.02 s']

@pytest.mark.parametrize('status, body, kind, words', [
    (403, b'<Error><Code>AccessDenied</Code><AWSAccessKeyId>a-secret-nobody-may-see</AWSAccessKeyId></Error>', StepError, 'refuses access to .*AccessDenied.* → check AWS_ACCESS_KEY_ID'),
    (401, b'a-secret-nobody-may-see', StepError, 'refuses access to .*401'),
    (400, b'<Error><Code>ExpiredToken</Code></Error>', StepError, 'refuses access to .*AWS_SESSION_TOKEN'),
    (404, b'<Error><Code>NoSuchBucket</Code></Error>', RequestError, f"there is no bucket '{BUCKET}'"),
    (301, b'<Error><Code>PermanentRedirect</Code></Error>', StepError, 'another region → set AWS_REGION'),
    (400, b'<Error><Code>AuthorizationHeaderMalformed</Code></Error>', StepError, 'another region'),
    (403, b'<Error><Code>RequestTimeTooSkewed</Code></Error>', StepError, 'the clock of this machine'),
    (500, b'a-secret-nobody-may-see certificate credential', PassingError, 'busy or failing .HTTP 500.'),
    (418, b'a-secret-nobody-may-see', StepError, 'refuses the request .*HTTP 418'),
])
def test_what_a_bucket_says(monkeypatch, status, body, kind, words):
    with answering((status, {}, body)) as server:
        for name, value in dict(AWS_ENDPOINT_URL=server.url, AWS_ACCESS_KEY_ID='key', AWS_SECRET_ACCESS_KEY=SECRET).items(): monkeypatch.setenv(name, value)
        store = open_store(f's3://{BUCKET}/x')
        with pytest.raises(kind) as raised: store.describe('toy.tar')
        pytest.raises(kind, store.write_bytes, b'', 'y') if kind is not PassingError else None
    line = two_lines(raised.value)
    assert re.search(words, line), line
    assert SECRET not in line and raised.value.__cause__ is None and raised.value.__suppress_context__

def test_access_as_nobody_known(moto, use, monkeypatch):
    use(moto)
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', SECRET)
    httpx2.post(f'{moto.url}/moto-api/reset-auth', content=b'0')  # from now on moto looks who asks
    try:
        for work in (lambda store: store.describe('x'), lambda store: store.write_bytes(b'', 'x')):
            with pytest.raises(StepError, match='refuses access') as raised: work(open_store(f's3://{BUCKET}'))
            assert 'InvalidAccessKeyId' in two_lines(raised.value) and SECRET not in two_lines(raised.value)
    finally: httpx2.post(f'{moto.url}/moto-api/reset-auth', content=b'inf')

def test_nobody_writes_to_google_without_credentials(monkeypatch):
    monkeypatch.setenv('HOME', str(Path.cwd()))
    with pytest.raises(StepError, match='no credentials for Google') as raised: open_store(f'gs://{BUCKET}').write_bytes(b'', 'x')
    assert 'GOOGLE_APPLICATION_CREDENTIALS' in two_lines(raised.value)

def test_a_bucket_that_is_not_there(moto, use):
    use(moto)
    for work in (lambda store: store.describe('x'), lambda store: store.write_bytes(b'', 'x')):
        with pytest.raises(RequestError, match="no bucket 'nowhere'"): work(open_store('s3://nowhere/models'))

def test_without_credentials(monkeypatch):
    with answering(ranged(b'public'), (403, {}, b'<Error><Code>AccessDenied</Code></Error>')) as server:
        monkeypatch.setenv('AWS_ENDPOINT_URL', server.url)
        monkeypatch.setenv('HOME', str(Path.cwd()))
        store = open_store(f's3://{BUCKET}')
        assert store.describe('x').size == 6  # a public bucket
        with pytest.raises(StepError) as raised: store.describe('x')
        assert 'no credentials were found' in two_lines(raised.value)
        assert 'authorization' not in server.requests[0][3]

def test_a_profile(monkeypatch, tmp_path):
    (tmp_path / 'credentials').write_text('[team]\naws_access_key_id = from-the-profile\naws_secret_access_key = x\n')
    monkeypatch.setenv('AWS_SHARED_CREDENTIALS_FILE', str(tmp_path / 'credentials'))
    monkeypatch.setenv('AWS_PROFILE', 'team')
    with answering(ranged(b'private')) as server:
        monkeypatch.setenv('AWS_ENDPOINT_URL', server.url)
        assert open_store(f's3://{BUCKET}').describe('x').size == 7
        assert 'from-the-profile' in server.requests[0][3]['authorization']
        monkeypatch.setenv('AWS_PROFILE', 'nobody')
        with pytest.raises(StepError, match='AWS profile cannot be used'): open_store(f's3://{BUCKET}').describe('x')

def test_a_profile_without_boto3(monkeypatch):
    monkeypatch.setenv('AWS_PROFILE', 'team')
    monkeypatch.setitem(sys.modules, 'botocore.exceptions', None)
    with pytest.raises(MissingPackage, match='boto3'): open_store(f's3://{BUCKET}').describe('x')

# ---- the web's own traps

def test_a_signed_address_is_never_shown(caplog):
    data = os.urandom(100)
    with answering(ranged(data), ranged(data, 0, 99), BUSY) as server:
        store = open_store(f'{server.url}/models?X-Signature={SECRET}')
        assert store.read(store.describe('toy.tar'), 0, 100) == data
        with pytest.raises(PassingError) as raised: find(store, 'toy.tar', QUICK)
        assert {(path, query) for _, path, query, _ in server.requests} == {('/models/toy.tar', f'X-Signature={SECRET}')}
    assert SECRET not in f'{two_lines(raised.value)} {caplog.text} {store!r} {store.address} {store.address!r} {raised.getrepr(style="long")}'

def test_a_login_page():
    with answering((200, {'content-type': 'text/html; charset=utf-8'}, b'<html>please log in</html>')) as server:
        with pytest.raises(StepError, match='web page in place of'): open_store(server.url).describe('toy.tar.gz')

def test_redirects():
    with answering(ranged(b'0123456789')) as target, answering((302, {'location': f'{target.url}/elsewhere'}, b'')) as server:
        store = open_store(server.url)
        assert store.describe('toy.tar').size == 10 and target.requests[0][1] == '/elsewhere'

def test_a_server_that_does_not_say_how_large(tmp_path):
    import http.server
    class Chunked(http.server.BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'
        def log_message(self, *_): pass
        def do_GET(self):
            self.send_response(200)
            self.send_header('Transfer-Encoding', 'chunked')
            self.end_headers()
            self.wfile.write(b'3\r\nabc\r\n0\r\n\r\n')
    with servers._threaded(Chunked) as url:
        with pytest.raises(StepError, match='does not say how large'): open_store(url).describe('toy.tar')

@pytest.mark.parametrize('reads', [0, 1], ids=['at once', 'later'])
def test_a_server_that_goes_on_and_on(reads):
    "It sends more than was asked for, and would not stop: it is not listened to for long."
    import http.server
    sent, asked = [], []
    class Endless(http.server.BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'
        def log_message(self, *_): pass
        def do_GET(self):
            asked.append(self.path)
            self.send_response(206)
            start, end = self.headers['range'].partition('=')[2].split('-')
            for name, value in {'Content-Range': f'bytes {start}-{end}/100000000', 'ETag': '"1"', 'Last-Modified': 'Sat, 21 Nov 2026 10:00:00 GMT'}.items(): self.send_header(name, value)
            self.send_header('Content-Length', '2' if len(asked) <= reads else '100000000')
            self.end_headers()
            if len(asked) <= reads: return self.wfile.write(b'01')
            try:
                for _ in range(100):
                    self.wfile.write(bytes(1_000_000))
                    sent.append(1)
            except OSError: pass
            self.close_connection = True
    with servers._threaded(Endless) as url:
        store = open_store(url)
        with pytest.raises(StepError, match='more than was asked for'):
            stored = store.describe('toy.tar')
            store.read(stored, 0, 1000)
    assert len(asked) == reads + 1 and len(sent) < 50

def test_google_credentials_of_other_kinds(monkeypatch, tmp_path):
    "Workload identity: google-auth trades a token of the machine's own cloud for one of Google's."
    import json
    from whisper_nb.object_store import _google_credentials
    (tmp_path/'subject').write_text('a-token-of-another-cloud')
    with answering((200, {'content-type': 'application/json'}, b'{"access_token": "for-google", "token_type": "Bearer", "expires_in": 3600, "issued_token_type": "x"}')) as server:
        named = dict(type='external_account', audience='//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q', subject_token_type='urn:ietf:params:oauth:token-type:jwt',
            token_url=f'{server.url}/v1/token', credential_source=dict(file=str(tmp_path/'subject')))
        (tmp_path/'named.json').write_text(json.dumps(named))
        monkeypatch.setenv('GOOGLE_APPLICATION_CREDENTIALS', str(tmp_path/'named.json'))
        assert _google_credentials()['credential_provider']()['token'] == 'for-google' and len(server.requests) == 1
    (tmp_path/'named.json').write_text(json.dumps(named | dict(type='another\x1b kind')))
    with pytest.raises(StepError, match='credentials cannot be used'): _google_credentials()
    monkeypatch.setitem(sys.modules, 'google.auth', None)
    with pytest.raises(MissingPackage, match='google-auth') as raised: _google_credentials()
    assert 'gdrive' in raised.value.advice and '\x1b' not in two_lines(raised.value)

def test_an_unencrypted_server_elsewhere_is_told(monkeypatch, caplog):
    monkeypatch.setenv('AWS_ENDPOINT_URL', f'http://me:{SECRET}@storage.invalid')
    open_store(f's3://{BUCKET}')
    assert 'storage.invalid is not encrypted' in caplog.text and SECRET not in caplog.text

# ---- memory, and the end of a process

def run_child(script, place, **options):
    "A Python process of its own, which is given the URL of a place."
    return subprocess.Popen([sys.executable, '-c', textwrap.dedent(script), str(place)], stdout=subprocess.PIPE, text=True, **options)

MEMORY = '''
    import resource, sys
    from pathlib import Path
    from whisper_nb.stores import open_store, read_ahead
    def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    store = open_store(sys.argv[1])
    store.write_bytes(bytes(100), 'warm')
    store.read(store.describe('warm'), 0, 100)
    before = peak()
    store.write(Path('large'), 'large')
    sent = peak()
    with read_ahead(store, store.describe('large')) as reader:
        while reader.read(1 << 20): pass
    print(sent - before, peak() - before)
'''

def test_memory_is_bounded(fast, use, tmp_path):
    use(fast)
    with open(tmp_path / 'large', 'wb') as file: file.truncate(120 * 2**20)
    child = run_child(MEMORY, f's3://{BUCKET}/memory')
    sent, both = map(float, child.communicate()[0].split())
    assert sent < 64 and both < 80, (sent, both)  # MB; the file has 126

KILLED = '''
    import sys, time
    from pathlib import Path
    from whisper_nb.stores import open_store
    total = 0
    def advance(count):
        global total
        total += count
        if total > 20 * 2**20:
            print('now', flush=True)
            time.sleep(60)
    open_store(sys.argv[1]).write(Path('large'), 'v1/large', advance)
'''

@pytest.mark.parametrize('place', ['file', 's3', 'gs'], indirect=True)
def test_a_killed_upload_leaves_nothing_to_see(place, tmp_path):
    (tmp_path / 'large').write_bytes(bytes(40 * 2**20))
    child = run_child(KILLED, place)
    assert child.stdout.readline() == 'now\n'
    child.send_signal(signal.SIGKILL)
    child.wait()
    store = open_store(place)
    assert store.describe('v1/large') is None
    store.write(tmp_path / 'large', 'v1/large')  # and the next one goes through
    assert store.describe('v1/large').size == 40 * 2**20

def test_ctrl_c_ends_an_upload(moto, use, tmp_path):
    from conftest import listen_to_ctrl_c
    use(moto)
    (tmp_path / 'large').write_bytes(bytes(40 * 2**20))
    child = run_child(KILLED.replace('time.sleep(60)', 'time.sleep(0.2)'), f's3://{BUCKET}/stopped', stderr=subprocess.PIPE, preexec_fn=listen_to_ctrl_c)
    assert child.stdout.readline() == 'now\n'
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=10)
    assert child.returncode and 'KeyboardInterrupt' in errors
    assert open_store(f's3://{BUCKET}/stopped').describe('v1/large') is None

READING = '''
    import sys
    from whisper_nb.stores import open_store, read_ahead
    store = open_store(sys.argv[1])
    with read_ahead(store, store.describe('large')) as reader:
        reader.read(1)
        print('now', flush=True)
        reader.read()
'''

def test_ctrl_c_ends_reading_from_a_line_that_stalls(tmp_path):
    from conftest import listen_to_ctrl_c
    (tmp_path / 'large').write_bytes(bytes(40 * 2**20))
    with http_server(tmp_path) as server, cutting_proxy(server.port) as line:
        child = run_child(READING, line.url, stderr=subprocess.PIPE, preexec_fn=listen_to_ctrl_c)
        assert child.stdout.readline() == 'now\n'
        line.stall()
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        start = time.monotonic()
        _, errors = child.communicate(timeout=15)
    assert child.returncode and 'KeyboardInterrupt' in errors and time.monotonic() - start < 5
