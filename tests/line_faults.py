"A bad line, a bad Hub, a bad store: each fault at each place of each way in and out, once and always. What comes of it is counted; a bad file never does."
import gzip
import io
import json
import logging
import os
import random
import shutil
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from email.utils import formatdate
from math import inf
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from faulty import Answer, faulty_line
from test_pack import contents, make_model, visible

TOKEN, SIGNATURE = 'hf_TheTokenNobodyMaySee', 'TheSignatureNobodyMaySee'
LIMIT = 40  # Seconds a case may take
QUIET = 0.7  # Seconds without a byte after which a connection counts as lost, here
ENDLESS = 160 << 20  # Bytes of an answer that never ends; whoever takes all of them would take any number

# ---- what goes wrong

@dataclass(frozen=True)
class Fault:
    "One row: what is done to a request."
    name: str
    do: object  # Takes the `Exchange` and a position in the body, from 0 to 1
    passing: bool = False  # Once: it must be got over
    body: bool = False  # It is about the body of an answer, and where it strikes makes a difference
    needs: str = ''  # 'ranged', 'whole', 'write', 'look-up': makes sense only there
    reads: bool = True  # Does it make sense for what is read?
    writes: bool = False  # And for what is written?
    kinds: tuple = ('hub', 'web', 's3')
    wrong_request: bool = False  # May the exit code be 2?
    harmless: bool = False  # Nothing that counts is changed

PAGE = b'<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in.</body></html>'
CODES = {401: 'ExpiredToken', 403: 'AccessDenied', 404: 'NoSuchKey', 416: 'InvalidRange', 429: 'SlowDown', 500: 'InternalError', 503: 'ServiceUnavailable', 412: 'PreconditionFailed', 413: 'EntityTooLarge'}

def said(exchange, status, code=None):
    "The refusal of a server of this kind: it repeats what it was asked, secrets and all."
    echo = f"{exchange.headers.get('Authorization', '')} {exchange.path}"
    if exchange.line.kind == 's3':
        word = code or CODES.get(status)
        return Answer(status, [('content-type', 'application/xml')], f'<?xml version="1.0"?><Error><Code>{word}</Code><Message>{echo.replace("&", "&amp;")}</Message></Error>'.encode() if word else b'')
    if exchange.line.kind == 'web': return Answer(status, [('content-type', 'text/plain')], echo.encode())
    code = code if code is not None else {404: 'EntryNotFound' if '/resolve/' in exchange.path else 'RepoNotFound'}.get(status, '')
    return Answer(status, [('content-type', 'application/json'), ('x-error-message', f'no: {echo}'), *[('x-error-code', code)] * bool(code)], json.dumps(dict(error=f'no: {echo}')).encode())

def status(number, code=None, body=None, **headers):
    "Answer with this status; the server behind the line hears nothing of it."
    def do(exchange, at):
        answer = said(exchange, number, code)
        headers_now = {name: value() if callable(value) else value for name, value in headers.items()}
        exchange.send((answer if body is None else replace(answer, body=body)).but(**headers_now))
    return do

def instead(body, kind='application/json', number=200):
    "Answer with this in place of the file."
    return lambda exchange, at: exchange.send(Answer(number, [('content-type', kind)], body))

def part_of(end):
    "Begin to answer, and end like this."
    def do(exchange, at):
        answer = exchange.forward()
        exchange.raw(exchange.head(answer) + answer.body[:int(len(answer.body) * at)])
        end(exchange)
    return do

def changed(change):
    "Answer otherwise: `change` takes the right answer and the position."
    def do(exchange, at): exchange.send(change(exchange.forward(), at))
    return do

def flipped(data, at):
    "One bit of these bytes is another one."
    if not data: return data
    place = min(len(data) - 1, int(len(data) * at))
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1:]

def redirect(where):
    def do(exchange, at):
        exchange.send(Answer(307 if exchange.method in ('PUT', 'POST') else 302, [('location', where(exchange))], b''))
    return do

def drip(exchange, at):
    "A few bytes now and then; all in all longer than the line may be quiet."
    answer, sent = exchange.forward(), 0
    exchange.raw(exchange.head(answer))
    for _ in range(12):
        piece = answer.body[sent:sent + max(1, min(2000, len(answer.body) // 20))]
        exchange.raw(piece)
        sent += len(piece)
        time.sleep(QUIET / 8)
    exchange.raw(answer.body[sent:])

def endless(exchange, at):
    "An answer that never ends; how much of it is taken is kept."
    answer = exchange.forward()
    exchange.raw(exchange.head(answer.but('content-length', transfer_encoding='chunked')))
    exchange.close()
    block, sent = b' ' * (1 << 20), 0
    with suppress(OSError):
        exchange.handler.connection.settimeout(5)
        while sent < ENDLESS:
            exchange.handler.wfile.write(b'100000\r\n' + block + b'\r\n')
            sent += len(block)
    exchange.line.swallowed = max(exchange.line.swallowed, sent)

def moved_range(answer, at):
    "A Content-Range that is one byte further."
    start, end, size = answer.get('content-range').removeprefix('bytes ').replace('/', '-').split('-')
    return answer.but(content_range=f'bytes {int(start) + 1}-{int(end) + 1}/{int(size) + 1}')

def compressed(answer, at): return replace(answer, body=gzip.compress(answer.body, 1)).but('content-length', content_encoding='gzip')
def as_part(answer, at): return replace(answer, status=206).but(content_range=f'bytes 0-{len(answer.body) - 1}/{len(answer.body)}') if answer.status == 200 else answer
def with_etag(make): return changed(lambda answer, at: answer.but('x-linked-etag', etag=f'"{make()}"'))
def two_answers(exchange, at):
    answer = exchange.forward()
    exchange.raw(exchange.head(answer) + (b'' if exchange.method == 'HEAD' else answer.body) + exchange.head(replace(answer, body=bytes(len(answer.body)))) + bytes(len(answer.body)))
def longer(exchange, at):
    answer = exchange.forward()
    exchange.raw(exchange.head(answer) + answer.body + b'and more, and more')
def answer_lost(exchange, at):
    exchange.forward()
    exchange.reset()
def upload_changed(exchange, at): exchange.send(exchange.forward(body=flipped(exchange.body, 0.7)))

LATER = 10**9  # Seconds to wait: some decades
FAULTS = (
    Fault('401', status(401), writes=True, wrong_request=True),
    Fault('403', status(403), writes=True),
    Fault('404', status(404), writes=True, wrong_request=True),
    Fault('404 of a proxy', status(404, ''), writes=True, wrong_request=True, kinds=('hub',)),
    Fault('416', status(416)),
    Fault('429, to wait 1 s', status(429, retry_after='1'), True, writes=True),
    Fault('429, to wait until a time', status(429, retry_after=lambda: formatdate(time.time() + 2, usegmt=True)), True, writes=True),
    Fault('429, to wait for decades', status(429, retry_after=str(LATER)), writes=True),
    Fault('429, to wait for nonsense', status(429, retry_after='²'), True, writes=True),
    Fault('429, with more digits than a number has', status(429, retry_after='9' * 400, ratelimit='"api";r=0;t=' + '9' * 400), writes=True),
    *(Fault(str(number), status(number), True, writes=True) for number in (500, 502, 503, 504)),
    Fault('500 with a list', status(500, body=b'[1]'), True, writes=True),
    Fault('500 with bytes that are no text', status(500, body=b'\xff\xfe{'), True, writes=True),
    Fault('507', status(507), writes=True, needs='write'), Fault('413', status(413), writes=True, needs='write'), Fault('412', status(412), True, writes=True, needs='write', kinds=('hub',)),
    Fault('the clock is wrong, says S3', status(403, 'RequestTimeTooSkewed'), writes=True, kinds=('s3',)),
    Fault('reset before the answer', lambda exchange, at: exchange.reset(), True, writes=True),
    Fault('closed without an answer', lambda exchange, at: exchange.close(), True, writes=True),
    Fault('reset after it was done', answer_lost, True, writes=True, needs='write'),
    Fault('no answer', lambda exchange, at: exchange.stall(), True, writes=True),
    Fault('reset in the middle', part_of(lambda exchange: exchange.reset()), True, body=True),
    Fault('ends early', part_of(lambda exchange: exchange.close()), True, body=True),
    Fault('stalls in the middle', lambda exchange, at: part_of(lambda exchange: exchange.stall())(exchange, max(at, 0.9)), True, body=True),  # as long as some of it comes each time, it is asked for again
    Fault('slow drip', drip, True, body=True, harmless=True),
    Fault('shorter, and says so', changed(lambda answer, at: replace(answer, body=answer.body[:int(len(answer.body) * at)])), body=True),
    Fault('longer, and says so', changed(lambda answer, at: replace(answer, body=answer.body + b'more')), body=True),
    Fault('longer than it says', longer, True, body=True),
    Fault('two answers in one', two_answers, wrong_request=True),  # the second may be taken for that of the next request
    Fault('one wrong bit', changed(lambda answer, at: replace(answer, body=flipped(answer.body, at))), body=True),
    Fault('wrong bytes', changed(lambda answer, at: replace(answer, body=bytes(len(answer.body)))), body=True),
    Fault('nothing in it', changed(lambda answer, at: replace(answer, body=b'')), body=True),
    Fault('a web page', instead(PAGE, 'text/html; charset=utf-8'), writes=True),
    Fault('a web page that says it is a file', instead(PAGE, 'application/octet-stream'), writes=True),
    Fault('an empty object', instead(b'{}'), writes=True), Fault('a list', instead(b'[]'), writes=True), Fault('numbers for texts', instead(b'{"sha": 5, "siblings": 7, "files": 1, "objects": 3, "commitOid": 2, "version": 1, "model": []}'), writes=True),
    Fault('redirects in a loop', redirect(lambda exchange: exchange.path), writes=True),
    Fault('redirected to another server', redirect(lambda exchange: exchange.line.elsewhere + exchange.path), writes=True),
    Fault('redirected to a page to sign in', redirect(lambda exchange: f'{exchange.line.elsewhere}/sign-in'), writes=True),
    Fault('wrong ETag', with_etag(lambda: 'b' * 40)),
    Fault('another ETag each time', with_etag(lambda: os.urandom(20).hex())),
    Fault('no ETag', changed(lambda answer, at: answer.but('etag', 'x-linked-etag'))),
    Fault('no ETag, no time', changed(lambda answer, at: answer.but('etag', 'x-linked-etag', 'last-modified'))),
    Fault('no Content-Length', lambda exchange, at: exchange.send(exchange.forward().but('content-length', 'x-linked-size'), -1), writes=True),
    Fault('wrong Content-Range', changed(moved_range), needs='ranged'),
    Fault('200 in place of 206', lambda exchange, at: exchange.send(exchange.forward(range=None)), needs='ranged'),
    Fault('206 in place of 200', changed(as_part), needs='whole'),
    Fault('the clock is far off', changed(lambda answer, at: answer.but(date='Sat, 01 Jan 2000 00:00:00 GMT')), True, writes=True, harmless=True),
    Fault('gzip that nobody asked for', changed(compressed), body=True),
    Fault('gzip that is none', changed(lambda answer, at: answer.but(content_encoding='gzip')), body=True),
    Fault('not HTTP', lambda exchange, at: (exchange.raw(b'SSH-2.0-OpenSSH_9.2p1\r\n'), exchange.close()), True, writes=True),
    Fault('headers without end', changed(lambda answer, at: answer.but(x_long='x' * 300_000)), writes=True),
    Fault('never ends', endless, needs='look-up'),
    Fault('what is sent changes on the way', upload_changed, needs='write', writes=True),
)

# ---- where

@dataclass(frozen=True)
class Place:
    "A request of a job."
    name: str
    fits: object  # Takes the `Exchange`: is it this one?
    at: float = 0.3  # Where a fault of the body strikes
    traits: tuple = ()  # 'ranged', 'whole', 'write', 'look-up', 'no body', 'body only'
    first: object = None  # What happens to it before, once

def suits(fault, place):
    "Does this fault make sense at this place?"
    write = 'write' in place.traits
    if fault.needs and fault.needs not in place.traits: return False
    if write: return fault.writes
    if not fault.reads: return False
    return not (fault.body and 'no body' in place.traits) and (fault.body or 'body only' not in place.traits)

# ---- what is done over the line: ways in and out

NAME, CHECKPOINT, DIRNAME = 'toy-ct2-int8', 'openai/whisper-tiny', 'openai_whisper-tiny'

def text_of(directory): return ' '.join(path.read_bytes()[:200_000].decode('utf-8', 'replace') for path in sorted(Path(directory).rglob('*')) if path.is_file()) if Path(directory).exists() else ''

class Way:
    "A job over a faulty line: what it needs, how it is done, what must be there afterwards."
    name, kind, places = '', 'hub', ()
    def __init__(self, work):
        self.work, self.stack, self.environment = work / self.name.replace('/', '-').replace(' ', '-'), ExitStack(), {}
        self.work.mkdir()

    def __enter__(self):
        with self.stack:
            url = self.serve()
            self.direct = url
            self.line, beside = (self.stack.enter_context(faulty_line(url, self.kind)) for _ in range(2))
            beside.add(lambda exchange: exchange.path.endswith('/sign-in'), lambda exchange: instead(PAGE, 'text/html')(exchange, 0), inf)
            self.line.elsewhere, self.beside = beside.url, beside
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *error): return self.stack.__exit__(*error)

    def begin(self, place, old):
        "Make a place for one case."
        if place.exists(): shutil.rmtree(place)
        place.mkdir()
        if old: shutil.copytree(self.old, place / 'models' / self.old.name)

    def wrong(self, place, old, ended):
        "What is wrong with what lies there now; '' when all is well. `ended`: the job says it is done."
        found = {name: contents(place / 'models' / name) for name in visible(place / 'models')}
        if ended: return '' if found == {self.dirname: self.right} else f'done, but what is there is not right: {sorted(found)}'
        allowed = {self.old.name: contents(self.old)} if old else {}
        return '' if found == allowed else f'refused, but what is there changed: {sorted(found)}'

    def tidy(self, place): shutil.rmtree(place, ignore_errors=True)


class Downloading(Way):
    "A checkpoint from a Hub, as `prepare` brings it."
    name, dirname = 'download from a Hub', DIRNAME
    _weights = staticmethod(lambda exchange: exchange.path.endswith('model.safetensors') and exchange.method == 'GET')
    places = (
        Place('the look-up', lambda exchange: '/revision/' in exchange.path, traits=('whole', 'look-up')),
        Place('a small file', lambda exchange: exchange.path.endswith('/config.json'), traits=('whole',)),
        Place('the weights, at the beginning', _weights, 0.01, ('whole',)),
        Place('the weights, in the middle', _weights, 0.5, ('whole', 'body only')),
        Place('the weights, at the end', _weights, 0.99, ('whole', 'body only')),
        Place('the weights, taken up again', lambda exchange: exchange.path.endswith('model.safetensors') and exchange.start, 0.3, ('ranged',), first=(_weights, part_of(lambda exchange: exchange.reset()))))

    def serve(self):
        from faulty import make_checkpoint
        from whisper_nb.hub import download
        from whisper_nb.mirror import app, running
        checkpoint, older = make_checkpoint(self.work / 'checkpoint'), make_checkpoint(self.work / 'older')
        (older / 'README.md').write_text('an older one')
        mirror = app({CHECKPOINT: checkpoint, 'someone/older': older})
        url = self.stack.enter_context(running(mirror))
        self.right = contents(download(CHECKPOINT, models_dir=self.work / 'right', endpoint=url, token=False).path)
        self.old = download(CHECKPOINT, models_dir=self.work / 'old', endpoint=self.stack.enter_context(running(app({CHECKPOINT: older}))), token=False).path
        self.environment = dict(HF_TOKEN=TOKEN)
        return url

    def do(self, place, old):
        from whisper_nb.hub import download
        download(CHECKPOINT, models_dir=place / 'models', endpoint=self.line.url, fresh=old)


def archive(exchange): return '.tar.gz' in exchange.path and not exchange.path.partition('?')[0].endswith(('.md5', '.sha256'))
def latest(exchange): return 'latest.json' in exchange.path
def looked(exchange): return exchange.method == 'HEAD' or exchange.headers.get('Range') == 'bytes=0-1'

class Restoring(Way):
    "A model from a store, by its latest version."
    dirname = NAME
    places = (
        Place('the look-up of latest.json', lambda exchange: latest(exchange) and looked(exchange), traits=('ranged',)),
        Place('latest.json', lambda exchange: latest(exchange) and not looked(exchange), traits=('ranged',)),
        Place('the look-up of the archive', lambda exchange: archive(exchange) and looked(exchange), traits=('ranged',)),
        Place('the archive, at the beginning', lambda exchange: archive(exchange) and not looked(exchange) and not exchange.start, 0.01, ('ranged',)),
        Place('the archive, in the middle', lambda exchange: archive(exchange) and exchange.start, 0.5, ('ranged',)),
        Place('the archive, at the end', lambda exchange: archive(exchange) and exchange.start, 0.999, ('ranged', 'body only')))

    def models(self):
        "The model that is stored, and an older one of the same name."
        model = make_model(self.work / 'made' / NAME, files={'config.json': b'{}', 'model.bin': random.Random(1).randbytes(3_000_000), 'vocabulary.json': b'["a"]'})
        self.old, self.right = make_model(self.work / 'old' / NAME, 10_000, seed=2), contents(model)
        return model

    def do(self, place, old):
        from whisper_nb.restore import restore
        restore(self.url, str(place / 'models'))


def stored(model, url, outputs):
    "Put a model into a store, as `publish` does; the record."
    from whisper_nb.files import read_manifest
    from whisper_nb.pack import pack
    from whisper_nb.restore import LATEST_NAME, PREFIX, RECORD_NAME, Publication
    from whisper_nb.stores import open_store
    packed = pack(model, outputs)
    record = Publication(model.name, f'{packed.sha256[:PREFIX]}/{packed.path.name}', packed.bytes, packed.sha256, read_manifest(model).sha256, '2026-11-21T09:30:00Z')
    store = open_store(url)
    for ending in ('', '.md5', '.sha256'): store.write_bytes(Path(f'{packed.path}{ending}').read_bytes(), f'{model.name}/{record.archive}{ending}')
    for path in (f'{model.name}/{record.version}/{RECORD_NAME}', f'{model.name}/{LATEST_NAME}'): store.write_bytes(record.to_json().encode(), path)
    return record


class RestoringFromTheWeb(Restoring):
    name, kind = 'restore from http://', 'web'
    def serve(self):
        from servers import http_server
        stored(self.models(), self.work / 'store', self.work / 'outputs')
        return self.stack.enter_context(http_server(self.work / 'store')).url
    @property
    def url(self): return f'{self.line.url}/{NAME}'


class RestoringFromASignedAddress(RestoringFromTheWeb):
    "Nothing is known of the archive but what is in it."
    name, places = 'restore from a signed http:// address', Restoring.places[2:]
    @property
    def url(self): return f'{self.line.url}/{self.path}?X-Signature={SIGNATURE}'
    def serve(self):
        url = super().serve()
        self.path = next((self.work / 'store').rglob('*.tar.gz')).relative_to(self.work / 'store').as_posix()
        return url


class RestoringFromS3(Restoring):
    name, kind = 'restore from s3://', 's3'
    def serve(self):
        from servers import BUCKET, s3rver
        server = self.stack.enter_context(s3rver(self.work / 'buckets'))
        self.environment, self.url = server.environment, f's3://{BUCKET}/some/{NAME}'
        with patch.dict(os.environ, self.environment): stored(self.models(), f's3://{BUCKET}/some', self.work / 'outputs')
        return server.url


class RestoringFromAHub(Restoring):
    name, url = 'restore from hf://', f'hf://someone/models/{NAME}'
    places = tuple(replace(place, traits=('no body',)) if 'look-up' in place.name else place for place in Restoring.places)
    def serve(self):
        from whisper_nb.mirror import serving
        self.environment = dict(HF_TOKEN=TOKEN)
        (self.work / 'hub').mkdir()
        url = self.stack.enter_context(serving(self.work / 'hub', writable=TOKEN))
        with patch.dict(os.environ, self.environment | dict(HF_ENDPOINT=url)): stored(self.models(), 'hf://someone/models', self.work / 'outputs')
        return url


class Publishing(Way):
    "A model to a store that holds an older one."
    size = 3_000_000
    def models(self):
        self.model = make_model(self.work / 'made' / NAME, files={'config.json': b'{}', 'model.bin': random.Random(1).randbytes(self.size), 'vocabulary.json': b'["a"]'})
        self.older = make_model(self.work / 'old' / NAME, 10_000, seed=2)
        self.right, self.before = contents(self.model), contents(self.older)

    def begin(self, place, old):
        super().begin(place, False)
        self.case = place.name
        with self.directly(): self.fill()

    @contextmanager
    def directly(self):
        with patch.dict(os.environ, self.reached(self.direct)): yield

    def do(self, place, old):
        from whisper_nb.errors import RequestError, StepError
        from whisper_nb.publish import publish
        report = publish(str(self.model), self.url, force=True, skip_test=True, outputs_dir=str(self.work / 'outputs'))
        for step in report.failures: raise (RequestError if step.exit_code == 2 else StepError)(step.detail, step.advice)

    def wrong(self, place, old, ended):
        from whisper_nb.restore import restore
        with self.directly():
            try: found = contents(restore(f'{self.url}/{NAME}', str(place / 'back')).path)
            except Exception as error: return f'{"done" if ended else "refused"}, and the store gives out no model: {type(error).__name__}: {error}'
            finally: shutil.rmtree(place / 'back', ignore_errors=True)
        if found == self.right or (found == self.before and not ended): return ''
        return 'done, but the store gives out the old model' if found == self.before else 'the store gives out another model'


class PublishingToS3(Publishing):
    name, kind, size = 'publish to s3://', 's3', 9_000_000
    places = (
        Place('the look-up of latest.json', lambda exchange: latest(exchange) and exchange.method == 'GET', traits=('ranged', 'no body')),
        Place('the beginning of the upload', lambda exchange: exchange.method == 'POST' and 'uploads' in exchange.path, traits=('write',)),
        Place('the first part', lambda exchange: exchange.method == 'PUT' and 'partNumber=1' in exchange.path, traits=('write',)),
        Place('the last part', lambda exchange: exchange.method == 'PUT' and 'partNumber=2' in exchange.path, traits=('write',)),
        Place('the end of the upload', lambda exchange: exchange.method == 'POST' and 'uploadId' in exchange.path, traits=('write',)),
        Place('reading it back', lambda exchange: archive(exchange) and exchange.method == 'GET' and exchange.start, 0.5, ('ranged',)),
        Place('a checksum file', lambda exchange: exchange.method == 'PUT' and exchange.path.endswith('.sha256'), traits=('write',)),
        Place('latest.json', lambda exchange: latest(exchange) and exchange.method == 'PUT', traits=('write',)))

    def serve(self):
        from servers import s3rver
        self.models()
        server = self.stack.enter_context(s3rver(self.work / 'buckets'))
        self.environment = server.environment
        return server.url

    def reached(self, url): return self.environment | dict(AWS_ENDPOINT_URL=url)
    @property
    def url(self): return f's3://models/{self.case}'
    def fill(self): stored(self.older, self.url, self.work / 'before')
    def tidy(self, place):
        super().tidy(place)
        shutil.rmtree(self.work / 'buckets' / 'models' / place.name, ignore_errors=True)


class PublishingToAHub(Publishing):
    name = 'publish to hf://'
    places = (
        Place('the look-up of the repository', lambda exchange: exchange.method == 'GET' and '/api/models/' in exchange.path, traits=('whole',)),
        Place('the look-up of latest.json', lambda exchange: exchange.method == 'HEAD' and latest(exchange), traits=('no body',)),
        Place('what is asked before an upload', lambda exchange: '/preupload/' in exchange.path, traits=('write',)),
        Place('where the archive goes', lambda exchange: exchange.path.endswith('/objects/batch'), traits=('write',)),
        Place('the archive', lambda exchange: exchange.method == 'PUT', traits=('write',)),
        Place('the commit of the archive', lambda exchange: '/commit/' in exchange.path, traits=('write',)),
        Place('the check', lambda exchange: exchange.method == 'HEAD' and archive(exchange), traits=('no body',)),
        Place('the commit of latest.json', lambda exchange: '/commit/' in exchange.path and b'latest.json' in exchange.body, traits=('write',)))

    def serve(self):
        from whisper_nb.mirror import serving
        self.models()
        (self.work / 'hub').mkdir()
        self.environment = dict(HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET='1')
        url = self.stack.enter_context(serving(self.work / 'hub', writable=TOKEN))
        with patch.dict(os.environ, self.reached(url)): stored(self.older, 'hf://someone/before', self.work / 'before')
        return url

    def reached(self, url): return self.environment | dict(HF_ENDPOINT=url)
    @property
    def url(self): return f'hf://someone/{self.case}'
    def fill(self):
        "The repository with the older model, without all its commits."
        shutil.copytree(self.work / 'hub' / 'someone_before', self.work / 'hub' / f'someone_{self.case}')
        (self.work / 'hub' / '.repositories' / f'someone_{self.case}.json').write_text(json.dumps(dict(repo_id=f'someone/{self.case}', private=True)))
    def tidy(self, place):
        super().tidy(place)
        shutil.rmtree(self.work / 'hub' / f'someone_{place.name}', ignore_errors=True)
        (self.work / 'hub' / '.repositories' / f'someone_{place.name}.json').unlink(missing_ok=True)


WAYS = (Downloading, RestoringFromTheWeb, RestoringFromASignedAddress, RestoringFromS3, RestoringFromAHub, PublishingToS3, PublishingToAHub)

# ---- trying

@dataclass(frozen=True)
class Case:
    "One fault, at one place, once or always."
    way: type
    place: Place
    fault: Fault
    times: float
    @property
    def told(self): return f"{self.fault.name} ({'once' if self.times == 1 else 'always'})"
    def __str__(self): return f'{self.way.name}, {self.place.name}: {self.told}'

def all_cases():
    "Every fault at every place it makes sense at. A line that changes each latest.json that is sent, and nothing before it, leaves nobody a way to put a right one there."
    found = [Case(way, place, fault, times) for way in WAYS for place in way.places for fault in FAULTS if suits(fault, place) and way.kind in fault.kinds for times in (1, inf)]
    return [case for case in found if not (case.fault.do is upload_changed and 'latest.json' in case.place.name and case.times == inf)]

class Waited(BaseException):
    "Somebody would have waited for very long."

@contextmanager
def hurried():
    "The same rules with shorter waits: nobody waits for more than a moment, a line is lost after less than a second."
    from huggingface_hub.utils import _http
    from whisper_nb import hub_store, object_store, origin, transfer
    pause, client = transfer._pause, object_store._client
    def shorter(error, tries, waits):
        found = pause(error, tries, waits[:2])
        if found is not None and found > transfer.LONGEST_WAIT: raise Waited(found)
        return found and min(found, 0.02)
    def quicker(endpoint, writing):
        found = client(endpoint, writing)
        found['client_options'] |= dict(timeout=f'{int(2000 * QUIET)}ms') if writing else dict(read_timeout=f'{int(1000 * QUIET)}ms')
        if writing: found['retry_config'] = dict(max_retries=2, backoff=dict(init_backoff=timedelta(milliseconds=10), max_backoff=timedelta(milliseconds=20), base=2), retry_timeout=timedelta(seconds=10))
        return found
    def sleep(seconds):
        if seconds > transfer.LONGEST_WAIT + 10: raise Waited(seconds)
        time.sleep(min(seconds, 0.01))
    with ExitStack() as stack:
        for target, name, value in ((transfer, '_pause', shorter), (object_store, '_client', quicker), (_http, 'time', SimpleNamespace(**{**vars(time), 'sleep': sleep}))):
            stack.enter_context(patch.object(target, name, value))
        for module in (origin, hub_store):
            for name in ('TIMEOUT', 'WRITING_TIMEOUT'):
                if hasattr(module, name): stack.enter_context(patch.object(module, name, QUIET))
        yield

class Heard(logging.Handler):
    "All that is logged."
    def __init__(self):
        super().__init__()
        self.lines = []
    def emit(self, record): self.lines.append(logging.Formatter('%(message)s').format(record))

@contextmanager
def listening():
    "What is logged and printed: a function that gives it."
    heard, out = Heard(), io.StringIO()
    loggers = [logging.getLogger(), logging.getLogger('huggingface_hub')]
    for logger in loggers: logger.addHandler(heard)
    try:
        with redirect_stdout(out), redirect_stderr(out): yield lambda: '\n'.join([*heard.lines, out.getvalue()])
    finally:
        for logger in loggers: logger.removeHandler(heard)

def done(way, place, old):
    "Do the job in its time: what it raised, if anything."
    result = []
    def work():
        try: result.append(way.do(place, old))
        except BaseException as error: result.append(error)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LIMIT)
    return result[0] if result else TimeoutError(f'it hung for {LIMIT} s')

def secrets_of(line):
    "What was sent over a line and must not be seen anywhere else."
    found = {TOKEN, SIGNATURE}
    for _, path, headers in line.asked:
        sent = headers.get('authorization', '')
        found |= {sent.rpartition('Signature=')[2] if 'Signature=' in sent else sent.partition(' ')[2]}
        found |= {part.partition('=')[2] for part in path.partition('?')[2].split('&') if 'ignature' in part}
    return found - {''}

def judged(case, error):
    "What an ending is: '' when it is one of ours, or what is wrong with it."
    from whisper_nb.errors import WhisperNbError, explain
    if not isinstance(error, WhisperNbError): return f'{type(error).__name__}: {error}'
    problem = explain(error)
    if not problem.what or not problem.advice or '\n' in problem.what + problem.advice or problem.what.startswith('unexpected'): return f'not two lines: {problem}'
    if problem.exit_code == 2 and not case.fault.wrong_request: return f'exit code 2: {problem.what}'
    if case.times == 1 and case.fault.passing: return f'given up, although it passed: {problem.what}'
    return ''

def tried(case, way, number):
    "Try one case: its outcome, and what was said or what is wrong."
    place, old = way.work / f'case{number}', case.times == inf
    way.begin(place, old)
    way.line.clear()
    way.beside.asked.clear()
    way.line.swallowed = 0
    if case.place.first: way.line.add(case.place.first[0], lambda exchange: case.place.first[1](exchange, 0.4), counts=False)
    way.line.add(case.place.fits, lambda exchange: case.fault.do(exchange, case.place.at), case.times)
    try:
        with patch.dict(os.environ, way.environment | {name: way.line.url for name in ('HF_ENDPOINT', 'AWS_ENDPOINT_URL')}), listening() as heard:
            error = done(way, place, old)
            hits, secrets, elsewhere = way.line.hits, secrets_of(way.line), ' '.join(headers.get('authorization', '') for _, _, headers in way.beside.asked)
            swallowed = way.line.swallowed
            way.line.clear()
            if not hits: return 'lost', f'the fault never came ({type(error).__name__}: {error})'
            if (problem := error is not None and judged(case, error)): return 'lost', problem
            if (problem := way.wrong(place, old, error is None)): return 'lost', problem
            if swallowed >= ENDLESS: return 'lost', 'an answer without end was taken, and taken'
            written = f"{heard()} {error and (error.what + error.advice + repr(error))} {text_of(way.work / 'outputs' / '..' / place.name)} {' '.join(path.read_text() for path in (way.work / 'outputs').glob('publish-*'))}"
            for secret in secrets:
                if secret in written: return 'lost', f'a secret is told: {written[max(0, written.index(secret) - 80):][:160]}'
                if secret in elsewhere: return 'lost', 'a secret was sent to another server'
            if error is None: return ('harmless' if case.fault.harmless else 'recovered'), ''
            again = done(way, place, old)
            if again is not None: return 'lost', f'the next run, without a fault: {type(again).__name__}: {again}'
            if (problem := way.wrong(place, old, True)): return 'lost', f'after the next run, without a fault: {problem}'
            return 'refused', error.what
    finally: way.tidy(place)

def without_ports(line, way):
    "A line as it can be shown: without what differs from run to run."
    for url, name in ((way.line.url, 'http://server'), (way.beside.url, 'http://elsewhere'), (way.direct, 'http://server')): line = line.replace(url, name).replace(url.partition('://')[2], name.partition('://')[2])
    return line

def run_cases(campaign, work, cases):
    "Try cases, grouped by the way they are about."
    from tqdm import tqdm
    with hurried(), tqdm(total=len(cases), desc='bad lines', unit=' faults', file=sys.__stderr__) as bar, patch.dict(os.environ, dict(HF_HOME=str(work / 'home'), TQDM_DISABLE='1', AWS_EC2_METADATA_DISABLED='true')):
        for kind in WAYS:
            mine = [case for case in cases if case.way is kind]
            if not mine: continue
            with kind(work) as way:
                for number, case in enumerate(mine):
                    outcome, detail = tried(case, way, number)
                    campaign.count(f'{kind.name}: {case.place.name}', case.told, outcome, without_ports(detail, way))
                    bar.update()

def _share(work, size, number, of):
    "What one of several processes does."
    from campaign import Campaign
    campaign, mine = Campaign('line_faults'), Path(work) / str(number)
    mine.mkdir()
    os.chdir(mine)
    run_cases(campaign, mine, chosen(size)[number::of])
    return campaign.rows

def chosen(size):
    "The cases of a form. Full: each fault on each way at three places, or at all there are, once or always; short: each fault on one way at one place."
    cases, generator, found = all_cases(), random.Random(f'{size} line faults'), []
    if size == 'full':
        pairs = {}
        for case in cases: pairs.setdefault((case.way, case.fault.name), {}).setdefault(case.place.name, []).append(case)
        return [generator.choice(places[name]) for places in pairs.values() for name in generator.sample(list(places), min(3, len(places)))]
    for number, fault in enumerate(FAULTS):
        way = WAYS[number % len(WAYS)]
        fitting = [case for case in cases if case.fault is fault]
        here = [case for case in fitting if case.way is way] or fitting
        found.append(generator.choice([case for case in here if (case.times == 1) == bool(number % 3)] or here))
    return found

def run(campaign, work, size):
    "A short form in this process, the full one in two."
    if size == 'short': return run_cases(campaign, Path(work), chosen(size))
    with ProcessPoolExecutor(2, mp_context=get_context('spawn')) as pool:  # not forked: obstore's threads would be missing
        for rows in pool.map(_share, *zip(*[(str(work), size, number, 2) for number in range(2)])): campaign.add(rows)
